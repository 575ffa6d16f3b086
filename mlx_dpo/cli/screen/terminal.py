"""Pieces of the screen that know nothing of DPO."""

import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text


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
