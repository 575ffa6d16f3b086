"""`mlx_dpo data merge`: several files of pairs into one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import share_progress
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.screen import show_account, show_json, show_ways_on, show_written

if TYPE_CHECKING:
    from mlx_dpo.workshop.collection import PairFilter


@click.command(short_help="Several files of pairs into one.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=options.Name())
@options.out("The file of pairs to write.")
@options.overwrite
@options.as_json
def merge(files: tuple[str, ...], out: str, overwrite: bool, as_json: bool) -> None:
    """Put files of pairs together.

    Repeated pairs are left out. Two pairs that contradict each other are both left out. Each id
    begins with the name of its file.

    \b
    Example:
      mlx_dpo data merge mine.jsonl harmless.jsonl --out all.jsonl
    """
    from mlx_dpo.workshop.collection import not_again

    rework_to(files, Path(out), [not_again()], overwrite=overwrite, as_json=as_json)


def rework_to(
    files: Sequence[str],
    out: Path,
    filters: "Sequence[PairFilter]",
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the pairs of files that pass all filters, and show what became of the rows.

    Raises:
        UsageError: If a file is not there, or `out` may not be replaced.
        DataError: If a file is another tool's, or no pair is left.
        DiskError: If `out` can't be written.
    """
    from mlx_dpo.preferences.schema import Problems
    from mlx_dpo.workshop.collection import Collection, rework

    options.refuse_existing(out, overwrite)
    refuse_foreign(*files)
    with Collection(Problems()) as collection:
        with share_progress("reading") as progress:
            rework([Path(file) for file in files], collection, filters=filters, progress=progress)
        account = show_account(collection, ", ".join(files))
        written = show_written(out, collection.write(out, replace=overwrite))
    show_ways_on(out)
    if as_json:
        show_json({**account, "written": [written]})
