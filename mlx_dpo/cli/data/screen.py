"""What the data commands that write pairs share: options, progress, the account of rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli.options import Name

if TYPE_CHECKING:
    from mlx_dpo.preferences.schema import Problems
    from mlx_dpo.workshop.collection import Collection, PairFilter

SHOWN = 8  # problems on the screen


def out_option(about: str, *, default: str | None = None) -> Callable[[Any], Any]:
    """The option ``--out``."""
    return click.option(
        "--out",
        metavar="FILE",
        type=Name(dir_okay=False),
        default=default,
        required=default is None,
        show_default=default is not None,
        help=about,
    )


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace a file that is there.")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Find out before any work whether a file may and can be written.

    Raises:
        UsageError: If it is there and may not be replaced.
        DiskError: If it can't be written.
    """
    from mlx_dpo.errors import UsageError
    from mlx_dpo.files import check_writable

    if path.exists() and not overwrite:
        raise UsageError(f"{path}: is there already; give another --out, or --overwrite")
    check_writable(path)


@contextmanager
def data_progress(name: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr where that is a terminal, fed with shares from 0 to 1."""
    from rich.console import Console

    from mlx_dpo.cli.screen import Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda share: None
        return
    bar = Bar(console)
    try:
        yield lambda share: bar.update(name, round(1000 * share), 1000, pace=f"{share:.0%}")
    finally:
        bar.stop()


def show_problems(problems: "Problems") -> None:
    """The first problems on stderr, and how many more there are."""
    from mlx_dpo.cli.screen import counted, printable

    shown = problems.shown()[:SHOWN]
    for problem in shown:
        click.echo(printable(f"{problem.level}: {problem}"), err=True)
    more = problems.counts.total() - len(shown)
    if more:
        click.echo(f"and {counted(more, 'problem')} more", err=True)


def show_account(collection: "Collection", name: str) -> None:
    """What became of the rows: problems on stderr, counts on stdout.

    Raises:
        DataError: If nothing is left to write.
    """
    from mlx_dpo.errors import DataError

    show_problems(collection.problems)
    account = collection.account()
    dropped = sorted((-count, code) for code, count in account.dropped.items() if count)
    codes = ", ".join(f"{-count} {code}" for count, code in dropped)
    if not account.pairs:
        raise DataError(f"{name}: no pair is left of {account.read} rows ({codes})")
    click.echo(
        f"rows    {account.read} read = {account.kept} kept + {account.read - account.kept} dropped"
        + (f" ({codes})" if codes else "")
    )
    if account.pairs != account.kept:
        click.echo(f"pairs   {account.pairs} from the {account.kept} rows kept")


def show_written(path: Path, pairs: int) -> None:
    """Where the pairs are now."""
    from mlx_dpo.cli.screen import counted

    click.echo(f"wrote   {path}  ({counted(pairs, 'pair')})")


def rework_to(
    files: Sequence[str], out: str, filters: "Sequence[PairFilter]", *, overwrite: bool
) -> None:
    """Files of pairs through filters into another, with the account of their rows.

    Raises:
        UsageError: If a file is not there, or the new one may not be replaced.
        DataError: If no pair is left.
        DiskError: If it can't be written.
    """
    from mlx_dpo.preferences.schema import Problems
    from mlx_dpo.workshop.collection import Collection, rework

    path = Path(out)
    refuse_existing(path, overwrite)
    with Collection(Problems()) as collection:
        with data_progress("reading") as progress:
            rework([Path(file) for file in files], collection, filters=filters, progress=progress)
        show_account(collection, ", ".join(files))
        written = collection.write(path, replace=overwrite)
    show_written(path, written)
