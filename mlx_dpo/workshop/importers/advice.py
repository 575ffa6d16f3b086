"""What to type for a file that is not of this project's own shape."""

import shlex
from pathlib import Path
from typing import Any

from mlx_dpo.errors import MlxDpoError
from mlx_dpo.preferences.context import HISTORIES, SYSTEMS
from mlx_dpo.preferences.json_text import Finding, RawRow
from mlx_dpo.preferences.schema import (
    ERROR,
    KEYS,
    LEVELS,
    read_preference,
)
from mlx_dpo.workshop.importers.chosen import STEP, TRL
from mlx_dpo.workshop.importers.fields import Fields, Format, LeftOutError, Row, first_of
from mlx_dpo.workshop.importers.formats import detect
from mlx_dpo.workshop.importers.rankings import is_undecided
from mlx_dpo.workshop.importers.sources import source_rows

_NUM_TRIED = 20  # first rows
_OWN_ROLES = ("system", "user", "assistant", "tool")
_PACKINGS = {".gz": "packed by gzip", ".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet"}


def advice(file: Path) -> str | None:
    """What a file is and the command that makes pairs of it, on one line with its place.

    None where the preference reader can read it, or knows best what is wrong with it.
    """
    packing = next((text for end, text in _PACKINGS.items() if file.suffix.lower() == end), None)
    try:
        for number, raw in enumerate(source_rows(file), 1):
            if packing is None and (not _is_whole(raw) or _is_own(raw.value)):
                return None
            if isinstance(raw.value, dict) and is_undecided(raw.value):
                return _candidates_line(file)
            found = detect(raw.value)
            if found is not None and (found is not TRL or _gives_pairs(raw.value, found)):
                more = _context(raw.value) if found is TRL else ""
                packed = f", {packing}" if packing else ""
                return _line(
                    f"{file}:{raw.line}",
                    f"{found.name} ({found.about}{more}{packed})",
                    file,
                    found.name,
                )
            if number == _NUM_TRIED:
                break
    except MlxDpoError:  # it can't be read at all, which the import says
        pass
    return None if packing is None else _line(str(file), packing, file, "auto")


def _line(place: str, what: str, file: Path, name: str) -> str:
    command = f"mlx_dpo data import {shlex.quote(str(file))} --format {name} --out pairs.jsonl"
    return f"{place}: this is {what}: {command}"


def _candidates_line(file: Path) -> str:
    name = shlex.quote(str(file))
    return (
        f"{file}: holds candidates, and no choice has been made yet; this makes pairs of them: "
        f"mlx_dpo data label {name} --out pairs.jsonl (or data judge)"
    )


def _is_whole(raw: RawRow) -> bool:
    return all(LEVELS[finding.code] != ERROR for finding in raw.findings)


def _is_own(row: Any) -> bool:
    """Whether the preference reader takes a row, and takes it as it is meant."""
    if not isinstance(row, dict) or _context(row) or STEP.fits(row):
        return False
    findings: list[Finding] = []
    pair_alone = {key: value for key, value in row.items() if key not in ("id", "kind")}
    pair = read_preference(pair_alone, 1, {*KEYS, *row}, findings)
    errors = {finding.code for finding in findings if LEVELS[finding.code] == ERROR}
    is_beyond = any(finding.code == "unsupported" for finding in findings)
    if errors == {"lone-surrogate"} or is_beyond:  # text that is damaged, or not all, in any shape
        return True
    if pair is None or errors:
        return False
    turns = (*pair.prompt, *pair.chosen, *pair.rejected)
    is_answer = all(side[0].role == "assistant" for side in (pair.chosen, pair.rejected))
    return is_answer and all(turn.role in _OWN_ROLES for turn in turns)


def _context(row: Fields) -> str:
    """The column of a row that belongs to its prompt, and that the preference reader ignores."""
    name = first_of(row, (*SYSTEMS, *HISTORIES))
    filled = name is not None and row[name] not in ("", [])
    return f"; with a column {name!r}, which only an import uses" if filled else ""


def _gives_pairs(row: Fields, shape: Format) -> bool:
    try:
        return bool(shape.read(Row(row), False))
    except LeftOutError:
        return False
