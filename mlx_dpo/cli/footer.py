"""What moves below the last line of a terminal while something takes its time: a status or a bar.

There is one for the whole process, `footer`. It is written to stderr, erased when it is done, and
set aside while a line is written above it. What it shows is made `printable`, as all lines are.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_TIMED = 2  # seconds after which a status says how long it has taken


def printable(text: str) -> str:
    """Text from a model or file, safe to show: it can't move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


class Footer:
    """A status with a spinner, or a bar with a line of figures under it; 80 columns hold either.

    Args:
        console: Where to draw. Default: stderr, and nothing where that is no terminal.

    Attributes:
        note: A line below, which stays on the screen when the rest is erased. It may be set in a
            signal handler: it takes no lock, and is read when the footer is drawn again, by itself
            some times a second.
        is_quiet: Nothing is drawn, and of the lines on stderr only warnings and errors are written.
        keeps_stdout: stdout is for one JSON value; lines for people go to stderr.
    """

    note = ""
    is_quiet = False
    keeps_stdout = False

    def __init__(self, console: "Console | None" = None) -> None:
        self._console = console
        self._live: Live | None = None
        self._body: Callable[[], RenderableType] = str
        self._figures = ""

    @property
    def is_shown(self) -> bool:
        """Whether something is drawn now."""
        return self._live is not None

    def doing(self, text: str, *, log: bool = False) -> None:
        """Show what is done now, until something else is shown.

        Args:
            text: A few words.
            log: Whether they become a line of their own where stderr is no terminal.
        """
        if self.is_quiet:
            return
        text = printable(text)
        if not self._has_terminal():
            if log:
                click.echo(f"{text} ...", err=True)
            return
        from rich.spinner import Spinner

        begun, spinner = time.monotonic(), Spinner("dots")

        def body() -> "RenderableType":
            seconds = int(time.monotonic() - begun)
            spinner.text = f"{text} ...  {seconds} s" if seconds >= _TIMED else f"{text} ..."
            return spinner

        self._body, self._figures = body, ""
        self._start()

    def bar(
        self, name: str, done: float, total: float, *, pace: str = "", figures: str = ""
    ) -> None:
        """Show `done` of `total`."""
        if self.is_quiet or not self._has_terminal():
            return

        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner
        from rich.table import Table

        spinner = Spinner("dots")

        def body() -> "RenderableType":
            row = Table.grid(padding=(0, 1))
            row.add_row(spinner, name, ProgressBar(total or 1, done, width=16), pace)
            return row

        self._body, self._figures = body, figures
        self._start()

    def clear(self) -> None:
        """Erase all but the note."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            if self.note:
                click.secho(self.note, fg="yellow", err=True)
                self.note = ""

    @contextmanager
    def aside(self, *, for_good: bool) -> Iterator[None]:
        """While the block runs, lines may be written; `for_good` does not draw again after it."""
        live = self._live
        if live is None or for_good:
            self.clear()
            yield
            return
        live.stop()
        try:
            yield
        finally:
            self._live = None
            self._start()

    def __rich_console__(self, console: "Console", options: object) -> Iterator["RenderableType"]:
        """What is drawn: status or bar, its figures, and the note where there is one."""
        from rich.text import Text

        yield self._body()
        if self._figures:
            yield Text(self._figures, no_wrap=True, overflow="ellipsis")
        if self.note:
            yield Text(self.note, style="yellow")

    def _has_terminal(self) -> bool:
        return self._console is not None or sys.stderr.isatty()

    def _start(self) -> None:
        if self._live is not None:
            return  # it draws what there is to draw by itself
        from rich.console import Console
        from rich.live import Live

        console = self._console or Console(stderr=True, highlight=False)
        self._live = Live(
            self, console=console, transient=True, refresh_per_second=6, redirect_stdout=False
        )
        self._live.start(refresh=True)
        if self.note:
            console.show_cursor(True)  # a second signal ends the process at once


footer = Footer()


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar while a block runs, where stderr is a terminal.

    Yields:
        Advances the bar: name of what is counted, their total number, and how many more are done.
    """
    done: Counter[str] = Counter()

    def advance(name: str, total: int, more: int) -> None:
        done[name] += more
        footer.bar(name, done[name], total, pace=f"{done[name]}/{total}")

    with _cleared():
        yield advance


@contextmanager
def share_progress(name: str) -> Iterator[Callable[[float], None]]:
    """As `progress`, of one thing; what is yielded takes the share that is done, 0 to 1."""
    with _cleared():
        yield lambda share: footer.bar(name, share, 1, pace=f"{share:.0%}")


@contextmanager
def _cleared() -> Iterator[None]:
    try:
        yield
    finally:
        footer.clear()


def show_at_once(text: str, is_terminal: bool) -> None:
    """Write a note from a signal handler, which may take no lock: below the footer, or as a line.

    A terminal gets its cursor back: a second signal ends the process at once.
    """
    line = f"{text}\n"
    if footer.is_shown:
        footer.note, line = text, ""
    show_cursor = "\x1b[?25h" if is_terminal else ""
    os.write(2, f"{show_cursor}{line}".encode())
