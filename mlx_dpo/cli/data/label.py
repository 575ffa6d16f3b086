"""`mlx_dpo data label`: a page in the browser where a person decides."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.screen import counted, program, say
from mlx_dpo.errors import UsageError
from mlx_dpo.extras import to_install


@click.command(short_help="Choose between answers, or write them, in the browser.")
@click.argument("files", metavar="[CANDIDATES|PROMPTS]...", nargs=-1, type=options.Name())
@options.out("The file of pairs to write.", default="preferences.jsonl")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of the page on 127.0.0.1. [default: any that is free]",
)
@click.option("--open/--no-open", "open_it", default=True, help="Whether to open the browser.")
def label(files: tuple[str, ...], out: str, port: int, open_it: bool) -> None:
    """Label pairs in the browser: which of two answers is better?

    Keys: 1 and 2 choose, t is a tie, s skips, e edits the answers until Esc, u takes the last one
    back, w writes a pair from scratch. Where a file has prompts and no answers, you write both.

    Each decision is on the disk before the next one is shown: close the page or press Ctrl-C at
    any time, and run the same command again to go on. Only this computer can open the page.

    \b
    Examples:
      mlx_dpo data label candidates.jsonl
      mlx_dpo data label --out mine.jsonl
    """
    if find_spec("starlette") is None or find_spec("uvicorn") is None:
        raise UsageError(f"`data label` needs starlette and uvicorn: {to_install('label')}")
    from mlx_dpo.workshop.candidates import load_candidates
    from mlx_dpo.workshop.label.book import PAIR, SKIP, Book, tasks_of
    from mlx_dpo.workshop.label.server import serve

    tasks = tasks_of(row for file in files for row in load_candidates(file))
    book = Book(Path(out), tasks)
    command = shlex.join(
        [program(), "data", "label", *files, "--out", out, *(["--port", str(port)] if port else [])]
    )

    def announce(address: str) -> None:
        left = len(tasks) - book.num_done()
        say(
            f"{counted(left, 'task')} to do, {counted(book.counts[PAIR], 'pair')} in {out}. "
            f"Open this page; Ctrl-C here ends it:\n  {address}"
        )
        if open_it and sys.stdout.isatty():
            click.launch(address)

    try:
        serve(book, port=port, command=command, announce=announce)
    finally:
        book.close()
    left = len(tasks) - book.num_done()
    pairs, skipped = book.counts[PAIR], book.counts[SKIP]
    of_them = f", {skipped} of them skipped" if skipped else ""
    say(f"\n{counted(pairs, 'pair')} in {out}; {counted(left, 'task')} to do{of_them}.")
    if left:
        say(f"Go on:\n  {command}")
    if pairs:
        say(f"Next:\n  {shlex.join([program(), 'data', 'check', out])}")
        say(f"  {shlex.join([program(), 'train', '--data', out])}")
