"""What the data commands that write pairs share: options, progress, the account of rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlx_dpo.preferences.problems import Problems
    from mlx_dpo.workshop.collection import Collection

SHOWN = 8  # problems on the screen


def out_option(about: str, *, default: str | None = None) -> Callable[[Any], Any]:
    """The option ``--out``."""
    return click.option(
        "--out",
        metavar="FILE",
        type=click.Path(dir_okay=False),
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

    from mlx_dpo.cli.terminal import Bar

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
    from mlx_dpo.cli.terminal import counted, printable

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
    from mlx_dpo.preferences.problems import by_code

    show_problems(collection.problems)
    account = collection.account()
    codes = by_code(account.dropped)
    if not account.pairs:
        raise DataError(f"{name}: no pair is left of {account.read} rows ({codes})")
    dropped = account.dropped.total()
    click.echo(
        f"rows    {account.read} read = {account.kept} kept + {dropped} dropped"
        + (f" ({codes})" if codes else "")
    )
    if account.pairs != account.kept:
        click.echo(f"pairs   {account.pairs} from the {account.kept} rows kept")
