"""`mlx_dpo data merge`: several files of pairs into one."""

import click

from mlx_dpo.cli.data.screen import out_option, overwrite_option
from mlx_dpo.cli.options import Name


@click.command(short_help="Several files of pairs into one.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=Name())
@out_option("The file of pairs to write.")
@overwrite_option
def merge(files: tuple[str, ...], out: str, overwrite: bool) -> None:
    """Put files of pairs together.

    A pair that comes again is left out; two that prefer opposite ways both are. Ids get the name
    of their file in front.

    \b
    Example:
      mlx_dpo data merge mine.jsonl harmless.jsonl --out all.jsonl
    """
    from mlx_dpo.cli.data.screen import rework_to
    from mlx_dpo.workshop.collection import not_again

    rework_to(files, out, [not_again()], overwrite=overwrite)
