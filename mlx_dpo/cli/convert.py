"""`mlx_dpo convert`."""

from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.screen import say, show_json, show_next


class Teller:
    """Shows what a conversion has found or done, and keeps the lines for --json."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        """Show a line; the conversion goes on."""
        say(line)
        self.lines.append(line)
        footer.doing("converting and comparing")


@click.command(short_help="PyTorch to MLX and back, with proof that nothing changed.")
@click.argument("src", metavar="SRC", type=options.Name())
@click.argument("dst", metavar="DST", type=options.Name(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["mlx", "torch"]),
    help="Direction, where SRC could be converted both ways.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Cast the weights. Default: as SRC holds them.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Prove the result before it appears: weights bit by bit, logits beside PyTorch's.",
)
@click.option("--overwrite", is_flag=True, help="Replace DST if an earlier conversion made it.")
@options.as_json
def convert(
    src: str,
    dst: Path,
    to: str | None,
    dtype: str | None,
    verify: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert a model between PyTorch and MLX, either way, and prove it.

    SRC is a Hugging Face folder, a hub id, an MLX folder (as `train` writes it) or a course
    artifact. The kind of SRC decides the direction: PyTorch's formats become an MLX folder, an MLX
    folder is converted back to what it was made from. DST appears complete or not at all.

    \b
    Examples:
      mlx_dpo convert path/to/torch-sft models/sft
      mlx_dpo convert checkpoints/sft-dpo path/to/torch-dpo
      mlx_dpo convert checkpoints/sft-dpo out --dtype bfloat16
    """
    from mlx_dpo.convert.conversion import Options, kind_of
    from mlx_dpo.convert.conversion import convert as run
    from mlx_dpo.convert.sources import find

    chosen = Options(to=to, dtype=dtype, verify=verify, overwrite=overwrite)  # type: ignore[arg-type]
    footer.doing(f"reading {src}")
    tell = Teller()
    run(find(src), dst, chosen, tell)
    is_mlx = kind_of(dst).is_mlx
    if is_mlx:
        show_next(["generate", "--model", str(dst), "--prompt", "Hello"])
    if as_json:
        form = "mlx" if is_mlx else "torch"
        show_json({"source": src, "out": str(dst), "to": form, "lines": tell.lines})
