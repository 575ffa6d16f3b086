"""Pieces of the screen that know nothing of DPO."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from mlx_dpo.insight.evaluation import wilson_interval


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


def gigabytes(count: float) -> str:
    """A number of bytes."""
    return f"{count / 2**30:.2f} GiB"


def clock(seconds: float) -> str:
    """A duration."""
    return str(timedelta(seconds=round(seconds)))


class Bar:
    """A progress bar with a line of figures under it; two lines, so that 80 columns hold it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.fields[pace]}")
        )
        self._task = self._progress.add_task("", total=1, pace="")
        self._live = Live(console=console, refresh_per_second=4)
        self._live.start()

    def update(
        self, name: str, done: int, total: int, *, pace: str = "", figures: str = ""
    ) -> None:
        """Show `done` of `total`."""
        self._progress.update(self._task, description=name, completed=done, total=total, pace=pace)
        self._live.update(Group(self._progress, Text(figures, no_wrap=True, overflow="ellipsis")))

    def stop(self) -> None:
        """Leave the last state on the screen."""
        self._live.stop()


# --- How figures of the looking commands are written, and how they show
# that they are at work.


def share(successes: float, trials: int) -> str:
    """`0.60 (0.46-0.72)`: a share with its Wilson 95 % interval; `-` of nothing."""
    if not trials:
        return "-"
    low, high = wilson_interval(successes, trials)
    return f"{successes / trials:.2f} ({low:.2f}-{high:.2f})"


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells as aligned text; the first `left` columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr while a block runs, where stderr is a terminal.

    Yields:
        To be called with what is done, how much of it there is, and how much more is done.
    """
    if not sys.stderr.isatty():
        yield lambda name, total, more: None
        return
    from rich.console import Console

    pass

    bar = Bar(Console(stderr=True))
    done: Counter[str] = Counter()

    def advance(name: str, total: int, more: int) -> None:
        done[name] += more
        bar.update(name, done[name], total, pace=f"{done[name]}/{total}")

    try:
        yield advance
    finally:
        bar.stop()
