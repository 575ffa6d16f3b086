"""The terminal: text that is safe to show, figures, tables, progress, the account of rows."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

import click

from mlx_dpo.errors import DataError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from mlx_dpo.preferences.chat import ChatFormat
    from mlx_dpo.preferences.schema import Problems
    from mlx_dpo.workshop.collection import Collection

_SHOWN_PROBLEMS = 8


def printable(text: str) -> str:
    """Text from a model or file, safe to show: it can't move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def program() -> str:
    """What to type for this program: its name, or its path where the name is not found."""
    name = "mlx_dpo"
    if shutil.which(name) or Path(sys.argv[0]).name != name:
        return name
    return os.path.relpath(sys.argv[0])


def counted(number: int, noun: str) -> str:
    """`1 pair`, `2 pairs`."""
    return f"{number} {noun}{'s'[: number != 1]}"


def clock(seconds: float) -> str:
    """A duration: `1:02:05`."""
    return str(timedelta(seconds=round(seconds)))


def share(successes: float, trials: int) -> str:
    """`0.60 (0.46-0.72)`: a share with its Wilson 95 % interval; `-` without trials."""
    from mlx_dpo.runs.scores import wilson_interval

    if not trials:
        return "-"
    low, high = wilson_interval(successes, trials)
    return f"{successes / trials:.2f} ({low:.2f}-{high:.2f})"


def screen_width(most: int = 100) -> int:
    """Columns to write in: those of the terminal, but no more than `most`."""
    return min(most, shutil.get_terminal_size((100, 0)).columns)


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of one-line cells as aligned text; `left` columns flush left, the others right."""
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - _width(cell))
            cells.append(cell + gap if column < left else gap + cell)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _width(text: str) -> int:
    """Columns of a terminal; Chinese, Japanese and Korean characters take two."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


class Bar:
    """A progress bar with a line of figures under it; two lines, so that 80 columns hold it.

    Attributes:
        note: A line below, which stays. It may be set in a signal handler: it takes no lock, and is
            read when the bar is drawn again, by itself four times a second.
    """

    note = ""

    def __init__(self, console: "Console") -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.fields[pace]}")
        )
        self._task = self._progress.add_task("", total=1, pace="")
        self._figures = ""
        self._live = Live(self, console=console, refresh_per_second=4)
        self._live.start()

    def update(
        self, name: str, done: float, total: float, *, pace: str = "", figures: str = ""
    ) -> None:
        """Show `done` of `total`."""
        self._progress.update(self._task, description=name, completed=done, total=total, pace=pace)
        self._figures = figures

    def __rich_console__(self, console: "Console", options: object) -> Iterator["RenderableType"]:
        """What is drawn: the bar, its figures, and the note where there is one."""
        from rich.text import Text

        yield self._progress
        yield Text(self._figures, no_wrap=True, overflow="ellipsis")
        if self.note:
            yield Text(self.note, style="yellow")

    def stop(self) -> None:
        """Leave the last state on the screen."""
        self._live.stop()


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr while a block runs, where stderr is a terminal.

    Yields:
        Advances the bar: name of what is counted, their total number, and how many more are done.
    """
    done: Counter[str] = Counter()
    with _stderr_bar() as bar:

        def advance(name: str, total: int, more: int) -> None:
            done[name] += more
            if bar is not None:
                bar.update(name, done[name], total, pace=f"{done[name]}/{total}")

        yield advance


@contextmanager
def share_progress(name: str) -> Iterator[Callable[[float], None]]:
    """As `progress`, of one thing; what is yielded takes the share that is done, 0 to 1."""
    with _stderr_bar() as bar:

        def show(share: float) -> None:
            if bar is not None:
                bar.update(name, share, 1, pace=f"{share:.0%}")

        yield show


@contextmanager
def _stderr_bar() -> Iterator[Bar | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    bar = Bar(Console(stderr=True))
    try:
        yield bar
    finally:
        bar.stop()


def show_account(collection: "Collection", name: str) -> None:
    """What became of the rows of a file: problems on stderr, counts on stdout.

    Raises:
        DataError: If no pair is left to write.
    """
    show_problems(collection.problems, most=_SHOWN_PROBLEMS, err=True)
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


def show_problems(
    problems: "Problems", *, most: int | None = None, err: bool = False, more: str = ""
) -> None:
    """The first problems of a file, and how many there are besides.

    Args:
        problems: Of the file.
        most: How many to show; None shows all that were kept to be shown.
        err: Whether to write to stderr.
        more: Where the others are; follows their number.
    """
    shown = problems.shown()[:most]
    for problem in shown:
        click.echo(printable(f"{problem.level}: {problem}"), err=err)
    left = problems.counts.total() - len(shown)
    if left:
        click.echo(printable(f"and {counted(left, 'problem')} more{more}"), err=err)


def about_template(chat: "ChatFormat") -> str:
    """Which chat template is used where that is a question, and what it writes before an answer.

    Empty where there is nothing to say.
    """
    from mlx_dpo.models.hub import other_templates
    from mlx_dpo.preferences.chat import named_templates

    if not chat.has_template:
        return "none; turns are written as <|user|> and <|assistant|>, a line each"
    names, before = named_templates(chat.tokenizer), chat.frame.before
    parts = [f"default, of {', '.join(names)}"] if names else []
    folder = Path(str(chat.tokenizer.name_or_path))
    if others := other_templates(folder, chat.tokenizer.chat_template):
        parts.append(f"another one, in {' and '.join(others)}, is not used")
    if before.strip():
        parts.append(
            f"writes {before[:60]!r} before an answer, which counts as prompt; generation begins "
            "before it"
        )
    return "; ".join(parts)


def show_written(path: Path, pairs: int) -> None:
    """Where the pairs are now."""
    click.echo(f"wrote   {path}  ({counted(pairs, 'pair')})")
