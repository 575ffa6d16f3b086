"""The prompts that are answered: each once, however often the file has it."""

from pathlib import Path

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences.documents import not_readable
from mlx_dpo.preferences.problems import Problems
from mlx_dpo.preferences.reader import refuse_errors
from mlx_dpo.preferences.repeats import text_digest
from mlx_dpo.records import Message
from mlx_dpo.workshop.candidates import Candidates, prompt_id, read_candidates


def read_prompts(path: str | Path) -> tuple[list[Candidates], int]:
    """The prompts of a file.

    Args:
        path: A ``.txt`` file with a prompt a line, or JSON rows with ``prompt`` (or ``user``): a
            list of prompts, of candidates or of preference pairs.

    Returns:
        The different prompts, without answers, in the order of the file; and how many rows it has.

    Raises:
        UsageError: If there is no such file.
        DataError: If a row can't be read, or there is none.
    """
    path = Path(path)
    rows = _lines(path) if path.suffix == ".txt" else _json_rows(path)
    seen: dict[bytes, Candidates] = {}
    for row in rows:
        # Ids of pairs are the pairs' own; those of prompts follow from their words.
        one = Candidates(prompt_id(row.prompt), row.prompt, row.kind)
        seen.setdefault(text_digest(row.prompt), one)
    return list(seen.values()), len(rows)


def _lines(path: Path) -> list[Candidates]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise not_readable(path, error) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    lines = [line.strip() for line in text.split("\n")]
    rows = [Candidates("", (Message("user", line),)) for line in lines if line]
    if not rows:
        raise UsageError(f"{path}: holds no prompt")
    return rows


def _json_rows(path: Path) -> list[Candidates]:
    problems = Problems()
    rows = list(read_candidates(path, problems, unique=False))
    refuse_errors(problems, len(rows) + problems.num_errors)
    return rows
