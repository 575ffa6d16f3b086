"""`mlx_dpo data sample`: answers of a model, to be judged or labelled."""

from contextlib import closing
from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import progress
from mlx_dpo.cli.screen import counted, say, show_json, show_next


@click.command(short_help="Several answers of a model to each prompt.")
@options.model()
@options.adapter()
@options.path(
    "--prompts",
    "One prompt per line (.txt), or JSON rows with 'prompt'; a file of pairs works too.",
    required=True,
)
@options.out("The file of candidates.", default="candidates.jsonl")
@options.count("-n", "--answers", about="Answers to each prompt.", default=2)
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(min=0),
    multiple=True,
    default=(1.0,),
    show_default=True,
    help="May be repeated: of the first answer, of the second ...",
)
@options.seed()
@options.max_tokens(256)
@options.count("--batch-size", about="Answers made at once; fewer need less memory.", default=16)
@options.as_json
@options.keeps_awake
def sample(
    model: str,
    adapter: str | None,
    prompts: str,
    out: str,
    answers: int,
    temperatures: tuple[float, ...],
    seed: int,
    max_tokens: int,
    batch_size: int,
    as_json: bool,
) -> None:
    """Let a model answer each prompt several times, and write the candidates.

    Equal answers are kept once. An answer that holds a token of the chat template is left out: it
    could not be trained on. Each batch is on the disk before the next begins: after a stop the same
    command continues where it stopped, and its file has the same bytes as without the stop.

    \b
    Example:
      mlx_dpo data sample --model checkpoints/tiny-sft --prompts prompts.txt -n 2
      mlx_dpo data judge candidates.jsonl --judge rule:shorter
    """
    from mlx_dpo.convert.sources import name_of
    from mlx_dpo.files import check_writable
    from mlx_dpo.insight.scoring import open_model
    from mlx_dpo.workshop.candidates import Origin
    from mlx_dpo.workshop.sampling import SamplingSettings, Session, read_prompts

    path = Path(out)
    check_writable(path)
    rows, num_rows = read_prompts(prompts)
    options.opening(model, adapter)
    loaded = open_model(model, adapter)
    name = name_of(model) + (f"+{name_of(adapter)}" if adapter else "")
    settings = SamplingSettings(answers, temperatures, seed, max_tokens, batch_size)
    origin = Origin(model, adapter or "")
    with closing(Session(loaded.model, loaded.chat, name, origin, rows, settings, path)) as session:
        say(f"prompts   {prompts}  ({num_rows} read, {len(rows)} different)")
        if session.done:
            say(f"continue  {session.done} of {len(rows)} prompts are answered in {path}")
        if batch_size > 1 and not session.together:
            say("one by one: this model's caches can't be batched exactly", err=True)
        with progress() as advance:
            advance("answering", len(rows), session.done)
            candidates = session.run(lambda more: advance("answering", len(rows), more))
    texts = [answer for row in candidates for answer in row.answers]
    choice = sum(len(row.answers) > 1 for row in candidates)
    cut = sum(not answer.finished for answer in texts)
    say(
        f"answers   {len(texts)} of {answers * len(candidates)} are usable and different; "
        f"{cut} cut off at {max_tokens} tokens"
    )
    say(f"wrote     {path}  ({choice} of {counted(len(candidates), 'prompt')} leave a choice)")
    if choice:
        show_next(["data", "label", out], ["data", "judge", out, "--judge", "rule:shorter"])
    if as_json:
        counts = {"prompts": len(candidates), "answers": len(texts), "cut": cut, "choice": choice}
        show_json({**counts, "written": [{"file": out}]})
