"""`mlx_dpo adapter`."""

from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.convert import Teller
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.screen import show_json


@click.group()
def adapter() -> None:
    """Work with LoRA adapters."""


@adapter.command(short_help="From mlx-lm's layout to PEFT's and back, with proof.")
@click.argument("src", metavar="SRC", type=options.Name(path_type=Path))
@click.argument("dst", metavar="DST", type=options.Name(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["mlx", "peft"]),
    required=True,
    help="The layout of DST: mlx-lm's or PEFT's.",
)
@options.model(
    "The model that the adapter is for. Default: the one SRC's dpo.json or PEFT config names.",
    required=False,
)
@click.option("--overwrite", is_flag=True, help="Replace DST if it is an adapter's folder.")
@options.as_json
def convert(
    src: Path, dst: Path, to: str, model: str | None, overwrite: bool, as_json: bool
) -> None:
    """Convert an adapter between mlx-lm's layout and PEFT's, and prove it.

    The record of its run, its tokenizer and chat template go along, and the model card says how
    DST is used. It appears complete and computes on the model what SRC computes, or not at all.

    \b
    Examples:
      mlx_dpo adapter convert checkpoints/my-dpo for-peft --to peft
      mlx_dpo adapter convert from-peft for-mlx --to mlx --model path/to/base
    """
    from mlx_dpo.convert.adapters.conversion import convert_adapter

    footer.doing(f"reading {src}")
    tell = Teller()
    convert_adapter(
        src,
        dst,
        to,  # type: ignore[arg-type]
        model,
        overwrite=overwrite,
        say=tell,
    )
    if as_json:
        show_json({"source": str(src), "out": str(dst), "to": to, "lines": tell.lines})
