"""`mlx_dpo generate`."""

import click

from mlx_dpo.cli.options import Name


@click.command()
@click.option(
    "--model", required=True, metavar="FOLDER", type=Name(), help="A model folder or hub id."
)
@click.option("--prompt", required=True, help="What to ask. It is put into the chat template.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest token each time.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decides what is sampled above temperature 0.",
)
def generate(model: str, prompt: str, max_tokens: int, temperature: float, seed: int) -> None:
    """Answer a prompt with a model.

    \b
    Example:
      mlx_dpo generate --model checkpoints/tiny-sft-dpo --prompt "What does a baker do?"
    """
    from mlx_dpo.cli.screen import printable
    from mlx_dpo.convert.sources import find_mlx, load_folder
    from mlx_dpo.models.generate import answer
    from mlx_dpo.preferences.chat import chat_format
    from mlx_dpo.records import Message

    loaded, tokenizer = load_folder(find_mlx(model))
    found = answer(
        loaded,
        chat_format(tokenizer),
        (Message("user", prompt),),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    click.echo(printable(found.text))
    if not found.closed:
        click.echo(f"(cut off after {max_tokens} tokens: --max-tokens)", err=True)
