"""`mlx_dpo data check`: all problems of a preference file, in one pass."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.screen import about_template, counted, printable, show_problems
from mlx_dpo.errors import DataError, UsageError, disk_error

if TYPE_CHECKING:
    from mlx_dpo.preferences.encoding import Ingested
    from mlx_dpo.preferences.schema import Problems


@click.command(short_help="All problems of a file, in one pass.")
@click.argument("file", metavar="FILE", type=options.Name(path_type=Path))
@options.model(
    "Whose tokenizer and template: checks lengths and special tokens too.", required=False
)
@options.max_length
@options.path("--log", "Write every problem, as JSONL.", type=options.Name(path_type=Path))
@options.as_json
def check(file: Path, model: str | None, max_length: int, log: Path | None, as_json: bool) -> None:
    """Check a preference file as `train` does, and show all its problems.

    Each problem is FILE:LINE:COLUMN, a code, the reason and what to do; docs/preferences.md lists
    the codes. The first twenty are shown. Exit code 3 if there are errors.

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
    candidates = _holds_candidates(file)
    tokenizing = Tokenizing(options.chat_of(model), max_length) if model else None
    if tokenizing and (template := about_template(tokenizing.chat)) and not as_json:
        click.echo(printable(f"template: {template}"))
    try:
        with log.open("w", encoding="utf-8") if log else nullcontext() as lines:
            problems = Problems(lines)
            ingested = ingest(file, problems, tokenizing)
    except OSError as error:
        raise disk_error(log, error) from None
    if as_json:
        click.echo(json.dumps(_as_json(file, ingested, problems)))
    elif not candidates:
        _show(ingested, problems, model, log)
    if candidates:
        raise DataError(
            f"{file}: holds candidates, which nobody has chosen between yet: "
            "`mlx_dpo data label` or `mlx_dpo data judge` makes pairs of them"
        )
    if problems.num_errors:
        count = counted(problems.num_errors, "error")
        way_out = "" if problems.cut_short else ", or leave such rows out: --drop-bad"
        raise DataError(f"{file}: {count}; train refuses the file: mend it{way_out}")


def _holds_candidates(file: Path) -> bool:
    """Whether the first row has answers and no choice; each such row would be an error."""
    from mlx_dpo.preferences.json_text import raw_rows

    first = next(raw_rows(file), None)
    row = first.value if first else None
    return isinstance(row, dict) and "answers" in row and "chosen" not in row


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

    rest = f"all are in {log}" if log else "--log FILE writes them all"
    show_problems(problems, more=f"; {rest}")
    if problems.counts:
        click.echo(f"problems: {by_code(problems.counts)}")
    dropped = ingested.dropped
    why = f" ({by_code(dropped)})" if dropped else ""
    rows = counted(ingested.read, "row")
    click.echo(f"{rows} read = {ingested.kept} kept + {dropped.total()} dropped{why}")
    if problems.cut_short:
        click.echo("The rest of the file could not be read: mend the error above first.")
    if model is None:
        click.echo("Lengths, special tokens and chat template were not checked: pass --model.")
