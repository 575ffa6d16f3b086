"""`mlx_dpo data sample`: answers of a model, to be judged or labelled."""

import click

from mlx_dpo.cli.data.screen import out_option
from mlx_dpo.cli.options import Name


@click.command(short_help="Several answers of a model to each prompt.")
@click.option(
    "--model", required=True, metavar="FOLDER", type=Name(), help="A model folder or hub id."
)
@click.option(
    "--prompts",
    required=True,
    metavar="FILE",
    type=Name(),
    help="A prompt a line (.txt), or JSON rows with 'prompt'; a file of pairs will do.",
)
@out_option("The file of candidates.", default="candidates.jsonl")
@click.option(
    "-n",
    "--answers",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Answers to each prompt.",
)
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(min=0),
    multiple=True,
    default=(1.0,),
    show_default=True,
    help="Given several times: of the first answer, the second ...",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Chance.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Answers made at once; less needs less memory.",
)
def sample(
    model: str,
    prompts: str,
    out: str,
    answers: int,
    temperatures: tuple[float, ...],
    seed: int,
    max_tokens: int,
    batch_size: int,
) -> None:
    """Let a model answer each prompt several times, and write the candidates.

    Answers that are equal are kept once, and one that holds a token of the chat template is not
    kept: it could not be trained on. Each batch is on the disk before the next begins: the same
    command after a stop goes on where it was, and its file has the same bytes as if it had never
    been stopped.

    \b
    Example:
      mlx_dpo data sample --model checkpoints/tiny-sft --prompts prompts.txt -n 2
      mlx_dpo data judge candidates.jsonl --judge rule:shorter
    """
    from pathlib import Path

    from mlx_dpo.cli.screen import counted, progress
    from mlx_dpo.convert.sources import find_mlx, load_folder, name_of
    from mlx_dpo.files import check_writable
    from mlx_dpo.preferences.chat import chat_format
    from mlx_dpo.workshop.sampling import Author, Session, Settings, read_prompts

    path = Path(out)
    check_writable(path)
    rows, num_rows = read_prompts(prompts)
    loaded, tokenizer = load_folder(find_mlx(model))
    author = Author(loaded, chat_format(tokenizer), name_of(model))
    settings = Settings(answers, temperatures, seed, max_tokens, batch_size)
    session = Session(author, rows, settings, path)
    click.echo(f"prompts   {prompts}  ({num_rows} read, {len(rows)} different)")
    if session.done:
        click.echo(f"continue  {session.done} of {len(rows)} prompts are answered in {path}")
    if batch_size > 1 and not session.together:
        click.echo("one by one: this model's caches can't be batched exactly", err=True)
    with progress() as tell:
        tell("answering", len(rows), session.done)
        found = session.run(lambda more: tell("answering", len(rows), more))
    given = [answer for row in found for answer in row.answers]
    choice = sum(len(row.answers) > 1 for row in found)
    click.echo(
        f"answers   {len(given)} of {answers * len(found)} are usable and different; "
        f"{sum(not answer.finished for answer in given)} cut off at {max_tokens} tokens"
    )
    click.echo(f"wrote     {path}  ({choice} of {counted(len(found), 'prompt')} leave a choice)")
