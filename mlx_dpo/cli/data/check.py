"""`mlx_dpo data check`: all problems of a preference file, in one pass."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.screen import (
    VERDICT_COLOURS,
    about_template,
    counted,
    say,
    show_json,
    show_problems,
)
from mlx_dpo.errors import DataError, UsageError, writing

if TYPE_CHECKING:
    from mlx_dpo.preferences.encoding import Ingested
    from mlx_dpo.preferences.schema import Problems
    from mlx_dpo.records import Preference


@click.command(short_help="All problems of a file, in one pass.")
@click.argument("file", metavar="FILE", type=options.Name(path_type=Path))
@options.model(
    "Check lengths and special tokens too, for this model.",
    required=False,
)
@options.max_length
@options.path("--log", "Write every problem, as JSONL.", type=options.Name(path_type=Path))
@options.as_json
def check(file: Path, model: str | None, max_length: int, log: Path | None, as_json: bool) -> None:
    """Check a preference file as `train` does, and show all its problems.

    Each problem is FILE:LINE:COLUMN, a code, the reason and what to do; docs/preferences.md
    of the repository lists the codes. Problems of one code are shown together, with their
    first rows. The verdict of `audit` on the lengths follows. Exit code 3 if there are errors.

    \b
    Examples:
      mlx_dpo data check mine.jsonl
      mlx_dpo data check mine.jsonl --model checkpoints/tiny-sft --log problems.jsonl
    """
    from mlx_dpo.preferences.encoding import Tokenizing, ingest
    from mlx_dpo.preferences.json_text import check_readable
    from mlx_dpo.preferences.schema import Problems

    check_readable(file)
    if log is not None and log.exists() and log.samefile(file):
        raise UsageError(f"{log}: is the file to check; --log takes another")
    refuse_foreign(file)
    tokenizing = Tokenizing(options.chat_of(model), max_length) if model else None
    if tokenizing and (template := about_template(tokenizing.chat)) and not as_json:
        say(f"template: {template}")
    footer.doing(f"reading {file}")
    with _opened(log) as lines:
        problems = Problems(lines)
        ingested = ingest(file, problems, tokenizing)
    if as_json:
        show_json(_as_json(file, ingested, problems), indent=None)
    else:
        _show(ingested, problems, model, log)
        _show_length_bias(file, ingested, is_in_tokens=model is not None)
    if problems.num_errors:
        count = counted(problems.num_errors, "error")
        way_out = "" if problems.cut_short else ", or leave such rows out: --drop-bad"
        raise DataError(f"{file}: {count}; train refuses the file: correct it{way_out}")


@contextmanager
def _opened(log: Path | None) -> Iterator[TextIO | None]:
    """The log, closed behind the block; None where none is asked for.

    Raises:
        DiskError: If it can't be written.
    """
    if log is None:
        yield None
        return
    with writing(log):
        file = log.open("w", encoding="utf-8")
    try:
        yield file
        with writing(log):
            file.flush()
    finally:
        with suppress(OSError):  # of a full disk, which has been reported
            file.close()


def _as_json(file: Path, ingested: "Ingested", problems: "Problems") -> dict[str, Any]:
    return {
        "file": str(file),
        "read": ingested.read,
        "kept": ingested.kept,
        "dropped": ingested.dropped,
        "problems": problems.counts,
        "errors": problems.num_errors,
        "cut_short": problems.cut_short,
        "first": [problem._asdict() | {"level": problem.level} for problem in problems.shown()],
    }


def _show(ingested: "Ingested", problems: "Problems", model: str | None, log: Path | None) -> None:
    from mlx_dpo.preferences.schema import by_code

    rest = f"All are in {log}." if log else "--log FILE writes them all."
    show_problems(problems, rest=rest)
    if problems.counts:
        say(f"problems: {by_code(problems.counts)}")
    dropped = ingested.dropped
    why = f" ({by_code(dropped)})" if dropped else ""
    rows = counted(ingested.read, "row")
    say(f"{rows} read = {ingested.kept} kept + {dropped.total()} dropped{why}")
    if problems.cut_short:
        say("The rest of the file could not be read: correct the error above first.")
    if model is None:
        say("Lengths, special tokens and chat template were not checked: pass --model.")


def _show_length_bias(file: Path, ingested: "Ingested", *, is_in_tokens: bool) -> None:
    """The verdict of `audit` on the lengths: in tokens those that training sees."""
    import numpy as np

    from mlx_dpo.insight.audit.bias import Measures, in_words
    from mlx_dpo.insight.audit.checks import LENGTH_ADVICE, OK, check_length

    if not ingested.kept:
        return
    if is_in_tokens:
        table = ingested.table.columns()
        lengths = np.diff(table["bounds"]).reshape(-1, 3)[table["code"] == 0]
        measures = Measures("tokens", lengths.T)
    else:
        measures = in_words(_usable(file))
    found = check_length(measures)
    say(f"length bias: {found.verdict}: {found.reason}", colour=VERDICT_COLOURS[found.verdict])
    if found.verdict != OK:
        say(f"warning: {LENGTH_ADVICE}; mlx_dpo audit {file} names the pairs")


def _usable(file: Path) -> "Iterator[Preference]":
    from mlx_dpo.preferences.reader import read_rows
    from mlx_dpo.preferences.schema import ERROR, LEVELS, Problems

    for row in read_rows(file, Problems(), compare=False):
        if row.preference is not None and (row.code is None or LEVELS[row.code] != ERROR):
            yield row.preference
