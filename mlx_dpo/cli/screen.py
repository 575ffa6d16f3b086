"""The terminal: lines that fit it and are safe to show, tables, figures, the account of rows."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

import click

from mlx_dpo.cli.footer import footer, printable
from mlx_dpo.errors import DataError
from mlx_dpo.preferences.schema import ERROR, LEFT_OUT, WARNING

if TYPE_CHECKING:
    from mlx_dpo.preferences.chat import ChatFormat
    from mlx_dpo.preferences.schema import Problem, Problems
    from mlx_dpo.preferences.scores import LengthControlled
    from mlx_dpo.workshop.collection import Collection

_PLACES = 3  # of errors of one code that are shown
_REASONS = 4  # why rows of one code are left out, where that differs
_LEVEL_COLOURS = {ERROR: "red", LEFT_OUT: "yellow", WARNING: "yellow"}
VERDICT_COLOURS = {"ok": None, "not checked": None, "look": "yellow", "stop": "red"}
_ALARMS = ("warning: ", f"{ERROR}: ", f"{LEFT_OUT}: ", "mlx_dpo: ")  # what --quiet lets through
_USUAL_WIDTH, _WIDEST = 80, 120  # columns: of a terminal that does not tell; of a line of text
_LEAST = 24  # columns that a text beside its label has
LENGTH_READING = (
    "length-matched: within 10 % of the longer answer's tokens, or one token; length-controlled: "
    "the mean of the first and the last row, in which always taking the longer answer gives 0.50."
)
# What stands before the text of a line: white space, and `model      ` or `warning: `.
_LABEL = re.compile(r" *(?:\S{1,32}(?: \S{1,24}){0,2}(?: {2,})|[\w-]{1,12}(?: [\w-]{1,6})?: +)?")
_WIDE = "\u2e80-\uffef"  # scripts that are written without spaces
_PIECE = re.compile(rf"[{_WIDE}]\s*|[^\s{_WIDE}]+\s*")
_COMMAND = re.compile(r" +(?:\S*/)?mlx_(?:dpo|lm)\S* ")
_WORD = r"""(?:[^\s'"]|'[^']*'|"[^"]*")+"""
_ARGUMENT = re.compile(rf"(?:-\S+ (?!-))?{_WORD}\s*|\S+\s*")  # an option with its value


def program(name: str = "mlx_dpo") -> str:
    """What to type for a program: its name, or its path beside ours where that is not found."""
    ours = Path(sys.argv[0])
    if shutil.which(name) or ours.name != "mlx_dpo":
        return name
    return os.path.relpath(ours.with_name(name))


def open_page(address: str) -> None:
    """Open a page in the person's browser, if there is a screen to show it on.

    Without a screen a text browser might take the terminal.
    """
    screens = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform != "darwin" and not screens:
        return
    preload = os.environ.pop("LD_PRELOAD", None)  # a BLAS for MLX, with which Chromium aborts
    try:
        click.launch(address)
    finally:
        if preload is not None:
            os.environ["LD_PRELOAD"] = preload


def page_place(page: Path) -> str:
    """Where a page lies: an address to click on a terminal, its path as given elsewhere."""
    return page.absolute().as_uri() if sys.stdout.isatty() else str(page)


def counted(number: int, noun: str) -> str:
    """`1 pair`, `2 pairs`."""
    return f"{number} {noun}{'s'[: number != 1]}"


def clock(seconds: float) -> str:
    """A duration: `1:02:05`."""
    return str(timedelta(seconds=round(seconds)))


def share(successes: float, trials: int) -> str:
    """`0.60 (0.46-0.72)`: a share with its Wilson 95 % interval; `-` without trials."""
    from mlx_dpo.preferences.scores import wilson_interval

    if not trials:
        return "-"
    low, high = wilson_interval(successes, trials)
    return f"{successes / trials:.2f} ({low:.2f}-{high:.2f})"


def share_of(controlled: "LengthControlled") -> str:
    """A share that is no plain count, in the same form."""
    low, high = controlled.interval
    return f"{controlled.share:.2f} ({low:.2f}-{high:.2f})"


def terminal_width(*, err: bool = False) -> int | None:
    """Columns of the terminal behind stdout, or stderr; None where it is a file or pipe."""
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or _USUAL_WIDTH
    except (OSError, ValueError):
        return _USUAL_WIDTH


def say(
    text: str = "", *, err: bool = False, colour: str | None = None, bold: bool = False
) -> None:
    """Write lines, safe to show: on a terminal wrapped at words, elsewhere as they are.

    With --json all go to stderr; with --quiet stderr gets only warnings and errors. Warnings are
    yellow. Colour is left out where the environment has NO_COLOR, and all style where there is no
    terminal.
    """
    err = err or footer.keeps_stdout
    if err and footer.is_quiet and not text.startswith(_ALARMS):
        return
    text, width = printable(text), terminal_width(err=err)
    if text.startswith("warning: "):
        colour = "yellow"
    if width is not None:
        text = fitted(text, min(width, _WIDEST))
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        colour = None
    if colour or bold:
        text = "\n".join(
            click.style(line, fg=colour, bold=bold or None) if line else line
            for line in text.split("\n")
        )
    with footer.aside(for_good=not err):
        click.echo(text, err=err)


class Stream:
    """A growing text on stdout: whole words, as soon as they are there, broken as other lines."""

    def __init__(self) -> None:
        self._shown = ""

    def so_far(self, text: str) -> None:
        """Show `text` but for its last word, which may go on."""
        pieces = _PIECE.findall(text)
        self._show(text[: len(text) - len(pieces[-1])] if pieces else "")

    def end(self, text: str) -> None:
        """Show the rest of `text` and end the line."""
        self._show(text)
        click.echo()

    def _show(self, text: str) -> None:
        text = printable(text.rstrip())
        width = terminal_width()
        lines = text if width is None else fitted(text, min(width, _WIDEST))
        if lines == self._shown:
            return
        footer.clear()
        # A tokenizer may yet change what it wrote, such as a space before a comma: then once more.
        new = lines[len(self._shown) :] if lines.startswith(self._shown) else f"\n{lines}"
        click.echo(new, nl=False)
        self._shown = lines


def show_json(record: Any, *, indent: int | None = 2) -> None:
    """Write one JSON value to stdout; it is never wrapped."""
    with footer.aside(for_good=True):
        click.echo(json.dumps(record, indent=indent))


def fitted(text: str, width: int) -> str:
    """Lines of at most `width` columns, broken between words; a longer word stays whole.

    The next line is aligned with the text after a label; a command is broken after a backslash.
    """
    return "\n".join(
        line if _width(line) <= width else _broken(line, width) for line in text.split("\n")
    )


def _broken(line: str, width: int) -> str:
    label = _LABEL.match(line)
    begin = (
        label.end() if label and label.end() <= width - _LEAST else len(line) - len(line.lstrip())
    )
    hang, end, pieces = begin, "", _PIECE
    if _COMMAND.match(line):
        hang, end, pieces = begin + 2, " \\", _ARGUMENT
    lines, now, is_empty = [], line[:begin], True
    for piece in pieces.findall(line[begin:]):
        if not is_empty and _width(now + piece.rstrip()) > width - len(end):
            lines.append(now.rstrip() + end)
            now = " " * hang
        now, is_empty = now + piece, False
    return "\n".join([*lines, now.rstrip()])


def table(
    rows: Sequence[Sequence[str]], left: int = 1, *, spare: Sequence[Sequence[str]] = ()
) -> str:
    """Rows of one-line cells as aligned text that fits the terminal.

    Args:
        rows: The first is the header.
        left: So many columns are flush left, the others right.
        spare: Headers of columns that a narrow terminal leaves out, one group after the other.
            Where that is not enough, the first column is cut.
    """
    full = terminal_width()
    most = None if full is None else min(full, _WIDEST)
    columns = list(zip(*rows, strict=True))
    for names in spare:
        if most is None or _total(columns) <= most:
            break
        columns = [column for column in columns if column[0] not in names]
    if most is not None and (excess := _total(columns) - most) > 0:
        columns[0] = tuple(_cut(cell, max(map(_width, columns[0])) - excess) for cell in columns[0])
    widths = [max(map(_width, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        cells = []
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - _width(cell))
            cells.append(cell + gap if column < left else gap + cell)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _total(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(_width, column)) for column in columns) + 2 * (len(columns) - 1)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while text and _width(text) >= max(width, 2):
        text = text[:-1]
    return f"{text}\u2026"


def _width(text: str) -> int:
    """Columns of a terminal; Chinese, Japanese and Korean characters take two."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def show_next(*commands: Sequence[str]) -> None:
    """What to type now: the words of each command after the program's name."""
    say("Next:")
    for words in commands:
        say(f"  {shlex.join([program(), *words])}")


def show_account(collection: "Collection", name: str) -> dict[str, Any]:
    """What became of the rows of a file: problems on stderr, counts on stdout.

    Returns:
        The counts, for --json.

    Raises:
        DataError: If no pair is left to write.
    """
    show_problems(collection.problems, err=True)
    account = collection.account()
    dropped = sorted((-count, code) for code, count in account.dropped.items() if count)
    codes = ", ".join(f"{-count} {code}" for count, code in dropped)
    if not account.pairs:
        raise DataError(f"{name}: no pair is left of {account.read} rows ({codes})")
    say(
        f"rows    {account.read} read = {account.kept} kept + {account.read - account.kept} dropped"
        + (f" ({codes})" if codes else "")
    )
    if account.pairs != account.kept:
        say(f"pairs   {account.pairs} from the {account.kept} rows kept")
    return account._asdict()


def show_problems(
    problems: "Problems",
    *,
    err: bool = False,
    drop_bad: bool = False,
    errors_only: bool = False,
    rest: str = "",
) -> None:
    """A line for each code, with its first rows; of errors the first places, to correct them.

    Args:
        problems: Of a file.
        err: Whether to write to stderr.
        drop_bad: Whether rows with errors are left out like others.
        errors_only: Whether to be silent about all but errors.
        rest: Where all are listed; the last line, where some were not shown.
    """
    is_whole = True
    for count, first in problems.of_each_code():
        if errors_only and first[0].level != ERROR:
            continue
        level = LEFT_OUT if drop_bad and first[0].level == ERROR else first[0].level
        places = first[: _PLACES if level == ERROR else 1]
        for line in _lines_of_code(level, count, first, places):
            say(f"{level}: {line}", err=err, colour=_LEVEL_COLOURS[level])
        is_whole &= count <= len(places)
    if rest and not is_whole:
        say(rest, err=err)


def _lines_of_code(
    level: str, count: int, first: "Sequence[Problem]", places: "Sequence[Problem]"
) -> list[str]:
    code, more = first[0].code, count - len(places)
    if more <= 0 or level == ERROR:
        lines = [str(problem) for problem in places]
        return [*lines, f"{more} more {code} ({_rows(first[len(places) :], more)})"][:count]
    reasons = list(dict.fromkeys(problem.reason for problem in first))
    reason = " / ".join(reasons[: _REASONS if level == LEFT_OUT else 1])
    hint = f"; {first[0].hint}" if first[0].hint else ""
    return [f"{first[0].file}: {count} x {code} ({_rows(first, count)}): {reason}{hint}"]


def _rows(first: "Sequence[Problem]", count: int) -> str:
    """`rows 3, 5, 8, ...`: the first of `count`."""
    numbers = ", ".join(str(problem.row) for problem in first)
    return f"row{'s'[: count != 1]} {numbers}{', ...' if count > len(first) else ''}"


def about_template(chat: "ChatFormat") -> str:
    """Which chat template is used where that is a question, and what it writes before an answer.

    Empty where there is nothing to say.
    """
    from mlx_dpo.models.tokenizer import other_templates
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


def show_written(path: Path, pairs: int) -> dict[str, Any]:
    """Where the pairs are now; the same for --json."""
    say(f"wrote   {path}  ({counted(pairs, 'pair')})")
    return {"file": str(path), "pairs": pairs}


def show_ways_on(path: Path, model: str = "FOLDER", adapter: str = "") -> None:
    """What to type with a file of pairs; `model` gave the answers, if that is known."""
    adapted = ["--adapter", adapter] if adapter else []
    train = ["train", "--model", model, *adapted, "--data", str(path)]
    show_next(["audit", str(path)], train)
