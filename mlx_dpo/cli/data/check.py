"""`mlx_dpo data check`: all that is wrong with a preference file, in one pass."""

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from mlx_dpo.cli.options import Name
from mlx_dpo.errors import DataError, DiskError, UsageError

if TYPE_CHECKING:
    from mlx_dpo.preferences.encoding import Ingested, Tokenizing
    from mlx_dpo.preferences.schema import Problems


@click.command(short_help="All that is wrong with a file, in one pass.")
@click.argument("file", metavar="FILE", type=Name(path_type=Path))
@click.option(
    "--model",
    metavar="FOLDER",
    type=Name(),
    help="Whose tokenizer and template: checks lengths and special tokens too.",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    help="Longest prompt + response in tokens.",
)
@click.option(
    "--log", metavar="FILE", type=Name(path_type=Path), help="Write every problem, as JSONL."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def check(file: Path, model: str | None, max_length: int, log: Path | None, as_json: bool) -> None:
    """Check a preference file as `train` does, and say where everything stands.

    Each problem is FILE:LINE:COLUMN, a code, the reason and what to do; docs/preferences.md lists
    the codes. The first twenty are shown. Exit code 3 if there are errors.

    \b
    Examples:
      mlx_dpo data check mine.jsonl
      mlx_dpo data check mine.jsonl --model checkpoints/tiny-sft --log problems.jsonl
    """
    from mlx_dpo.cli.screen import counted
    from mlx_dpo.preferences.encoding import ingest
    from mlx_dpo.preferences.json_text import check_readable
    from mlx_dpo.preferences.schema import Problems

    check_readable(file)
    if log is not None and log.exists() and log.samefile(file):
        raise UsageError(f"{log}: is the file to check; --log takes another")
    candidates = _holds_candidates(file)
    tokenizing = _tokenizing(model, max_length) if model else None
    try:
        with _opened(log) as lines:
            problems = Problems(lines)
            found = ingest(file, problems, tokenizing)
    except OSError as error:
        raise DiskError(f"{log}: not written: {error.strerror or error}") from None
    if as_json:
        click.echo(json.dumps(_as_json(file, found, problems)))
    elif not candidates:
        _show(found, problems, model, log)
    if candidates:
        raise DataError(
            f"{file}: holds candidates, which nobody has chosen between yet: "
            "`mlx_dpo data label` or `mlx_dpo data judge` makes pairs of them"
        )
    if problems.num_errors:
        count = counted(problems.num_errors, "error")
        way_out = "mend it" if problems.cut_short else "mend it, or leave such rows out: --drop-bad"
        raise DataError(f"{file}: {count}; train refuses the file: {way_out}")


def _holds_candidates(file: Path) -> bool:
    """Whether the first row has answers and no choice: every row would be an error of its own."""
    from mlx_dpo.preferences.json_text import raw_rows

    first = next(raw_rows(file), None)
    row = first.value if first else None
    return isinstance(row, dict) and "answers" in row and "chosen" not in row


def _opened(log: Path | None) -> AbstractContextManager[TextIO | None]:
    return log.open("w", encoding="utf-8") if log else nullcontext()


def _tokenizing(model: str, max_length: int) -> "Tokenizing":
    from mlx_dpo.convert.sources import load_tokenizer
    from mlx_dpo.preferences.chat import chat_format
    from mlx_dpo.preferences.encoding import Tokenizing

    return Tokenizing(chat_format(load_tokenizer(model)), max_length)


def _as_json(file: Path, found: "Ingested", problems: "Problems") -> dict[str, Any]:
    return {
        "file": str(file),
        "read": found.read,
        "kept": found.kept,
        "dropped": found.dropped,
        "problems": problems.counts,
        "errors": problems.num_errors,
        "cut_short": problems.cut_short,
        "first": [problem._asdict() | {"level": problem.level} for problem in problems.shown()],
    }


def _show(found: "Ingested", problems: "Problems", model: str | None, log: Path | None) -> None:
    from mlx_dpo.cli.screen import counted, printable
    from mlx_dpo.preferences.schema import by_code

    shown = problems.shown()
    for problem in shown:
        click.echo(printable(f"{problem.level}: {problem}"))
    more = problems.counts.total() - len(shown)
    if more:
        where = f"all are in {log}" if log else "--log FILE writes them all"
        click.echo(printable(f"and {counted(more, 'problem')} more; {where}"))
    if problems.counts:
        click.echo(f"problems: {by_code(problems.counts)}")
    dropped = found.dropped
    why = f" ({by_code(dropped)})" if dropped else ""
    rows = counted(found.read, "row")
    click.echo(f"{rows} read = {found.kept} kept + {dropped.total()} dropped{why}")
    if problems.cut_short:
        click.echo("The file has more, which could not be read: mend the place above first.")
    if model is None:
        click.echo("Lengths, special tokens and chat template were not looked at: pass --model.")
