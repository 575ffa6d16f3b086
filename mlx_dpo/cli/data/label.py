"""`mlx_dpo data label`: a page in the browser where a person decides."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.screen import counted, open_page, program, say
from mlx_dpo.errors import UsageError
from mlx_dpo.extras import to_install

if TYPE_CHECKING:
    from mlx_dpo.workshop.candidates import Candidates, Origin
    from mlx_dpo.workshop.label.book import Book, Task
    from mlx_dpo.workshop.label.server import Session

_PACKAGES = ("starlette", "uvicorn", "markdown_it", "nh3")


@click.command(short_help="Choose between answers, or write them, in the browser.")
@click.argument("files", metavar="[CANDIDATES|PROMPTS]...", nargs=-1, type=options.Name())
@options.out("The file of pairs to write.", default="preferences.jsonl")
@options.path("--guidelines", "What makes an answer better, in Markdown; the page shows it.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of the page on 127.0.0.1. [default: any that is free]",
)
@click.option("--open/--no-open", "open_it", default=True, help="Whether to open the browser.")
def label(
    files: tuple[str, ...], out: str, guidelines: str | None, port: int, open_it: bool
) -> None:
    """Label pairs in the browser: which of two answers is better?

    Keys: 1 and 2 choose, t is a tie, b says that both are bad, s skips, d marks the differences,
    e edits the answers until Esc, u takes the last decision back, w writes a pair from scratch,
    ? shows all keys. Where a file has prompts and no answers, you write both; prompts may also be
    the lines of a .txt file. Finished pairs in a file are counted and left alone.

    Each decision is on the disk before the next one is shown: close the page or press Ctrl-C at
    any time, and run the same command again to go on. Only this computer can open the page.

    \b
    Examples:
      mlx_dpo data label candidates.jsonl
      mlx_dpo data label candidates.jsonl --guidelines guidelines.md
      mlx_dpo data label --out mine.jsonl
    """
    if any(find_spec(name) is None for name in _PACKAGES):
        raise UsageError(
            f"`data label` needs starlette, uvicorn, markdown-it-py and nh3: {to_install('label')}"
        )
    from mlx_dpo.workshop.candidates import load_prompts, origins_of
    from mlx_dpo.workshop.label.book import Book
    from mlx_dpo.workshop.label.server import Session, serve

    by_file = {file: load_prompts(file) for file in files}
    tasks = _tasks(by_file)
    text = _guidelines(guidelines) if guidelines else ""
    book = Book(Path(out), tasks)
    command = shlex.join(
        [
            *(program(), "data", "label", *files, "--out", out),
            *(["--guidelines", guidelines] if guidelines else []),
            *(["--port", str(port)] if port else []),
        ]
    )
    origins = origins_of(row for rows in by_file.values() for row in rows)
    session = Session(command, *_next(out, origins), guidelines=text)
    try:
        serve(book, session, port=port, announce=lambda page: _announce(book, page, open_it))
    finally:
        book.close()
    _say_what_is_left(book, session)


def _tasks(by_file: "dict[str, list[Candidates]]") -> "list[Task]":
    """The tasks of all files.

    Raises:
        UsageError: If files are given and hold nothing but pairs.
    """
    from mlx_dpo.workshop.label.book import tasks_of

    pairs = {file: sum(row.is_pair for row in rows) for file, rows in by_file.items()}
    found = {file: number for file, number in pairs.items() if number}
    tasks = tasks_of(row for rows in by_file.values() for row in rows)
    if found and not tasks:
        raise UsageError(
            f"{', '.join(found)}: nothing to decide, all rows are finished pairs (`chosen`, "
            "`rejected`); give candidates or prompts; new pairs go to --out"
        )
    for file, number in found.items():
        say(
            f"{file}: {counted(number, 'finished pair')} left alone, rows with `chosen` and "
            "`rejected`; new pairs go to --out",
            err=True,
        )
    return tasks


def _guidelines(file: str) -> str:
    from mlx_dpo.paths import text_of

    try:
        text = text_of(Path(file))
    except OSError as error:
        raise UsageError(f"--guidelines {file}: {error.strerror}; give a text file") from None
    if not text.strip():
        raise UsageError(f"--guidelines {file}: is empty; write there what makes an answer better")
    return text


def _next(out: str, origins: "list[Origin]") -> tuple[tuple[str, ...], str]:
    """The commands to train on the pairs, and what to add to them if that is not clear.

    The model to train is the one that gave the answers.
    """
    check = shlex.join([program(), "data", "check", out])
    train = [program(), "train", "--data", out]
    if len(origins) == 1 and origins[0].model:
        for option, place in origins[0]._asdict().items():
            train += [f"--{option}", place] if place else []
        return (check, shlex.join(train)), ""
    names = ", ".join(" + ".join(filter(None, origin)) for origin in origins if origin.model)
    which = f"one of those that gave the answers ({names})" if names else "the one to improve"
    return (check, shlex.join(train)), f"Add --model to the last: {which}."


def _announce(book: "Book", address: str, open_it: bool) -> None:
    from mlx_dpo.workshop.label.book import PAIR

    left = book.left()
    to_write = sum(not task.is_choice for task in left)
    of_them = f" ({to_write} of them without two answers: you write them)" if to_write else ""
    pairs = counted(book.counts[PAIR], "pair")
    say(
        f"{counted(len(left), 'task')} to do{of_them}, {pairs} in {book.out}. "
        f"Open this page; Ctrl-C here ends it:\n  {address}"
    )
    if open_it and sys.stdout.isatty():
        open_page(address)


def _say_what_is_left(book: "Book", session: "Session") -> None:
    from mlx_dpo.workshop.label.book import BAD, PAIR, SKIP

    left = len(book.tasks) - book.num_done()
    pairs, skipped, bad = (book.counts[event] for event in (PAIR, SKIP, BAD))
    of_them = f", {skipped} of them skipped" if skipped else ""
    say(f"\n{counted(pairs, 'pair')} in {book.out}; {counted(left, 'task')} to do{of_them}.")
    if bad:
        say(
            f"Both answers bad: {bad}. They make no pair; sample other answers to these prompts, "
            "or write better ones (w)."
        )
    if left:
        say(f"To continue:\n  {session.command}")
    if pairs:
        say("Next:\n" + "\n".join(f"  {line}" for line in session.next_commands))
        if session.next_note:
            say(session.next_note)
