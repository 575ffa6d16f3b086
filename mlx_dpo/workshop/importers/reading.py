"""An import: rows of a source, through a format and the project's own checks, into a collection."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.json_text import Finding, RawRow
from mlx_dpo.preferences.schema import KEYS, LEVELS, WARNING, read_preference
from mlx_dpo.records import Preference
from mlx_dpo.workshop.collection import Collection
from mlx_dpo.workshop.importers.formats import FORMATS, Format, detect
from mlx_dpo.workshop.importers.sources import source_rows
from mlx_dpo.workshop.importers.turns import LeftOutError

Place = tuple[Path, RawRow]
_LOOKED_AT = 100  # rows in which a format must show itself


def open_rows(files: Sequence[Path], name: str) -> tuple[Format, Iterator[Place], int]:
    """The rows of some files, and their format.

    Args:
        files: Where they lie.
        name: A key of `FORMATS`, or "auto" to go by the first row that has a known shape.

    Returns:
        The format, all rows, and the number of the row that showed the format (0 if it was named).

    Raises:
        UsageError: If a file can't be read.
        DataError: If none of the first rows has a known shape.
    """
    rows = ((file, raw) for file in files for raw in source_rows(file))
    if name != "auto":
        return FORMATS[name], rows, 0
    seen: list[Place] = []
    for place in rows:
        seen.append(place)
        found = detect(place[1].value)
        if found is not None:
            return found, chain(seen, rows), len(seen)
        if len(seen) == _LOOKED_AT:
            break
    if not seen:
        raise DataError(f"{files[0]}: no rows in the file")
    file, raw = seen[0]
    keys = sorted(raw.value)[:12] if isinstance(raw.value, dict) else "no object"
    raise DataError(
        f"{file}: the shape of its rows is not known (the first has {keys}); name it with "
        f"--format: {', '.join(FORMATS)}"
    )


def collect(
    rows: Iterable[Place],
    shape: Format,
    collection: Collection,
    *,
    all_pairs: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Take every row of a source into a collection.

    Pairs are named after the row they come from: ``12``, or ``12-1``, ``12-2`` where a row gives
    several.

    Args:
        rows: From `open_rows`.
        shape: Their format.
        collection: Where the pairs go, and what is wrong.
        all_pairs: Whether a ranking gives all its pairs, or its best against its worst.
        progress: Told now and then what share of a file is done.
    """
    for number, (file, raw) in enumerate(rows, 1):
        findings = list(raw.findings)
        pairs: list[Preference] = []
        if all(LEVELS[finding.code] == WARNING for finding in findings):
            pairs = _pairs(raw.value, number, shape, all_pairs, findings)
        collection.take(file, raw, pairs, findings)
        collection.problems.cut_short |= raw.ends
        if number % 256 == 0:
            progress(raw.share)
    progress(1.0)


def _pairs(
    value: Any, number: int, shape: Format, all_pairs: bool, findings: list[Finding]
) -> list[Preference]:
    """The usable pairs of a row; what is wrong is added to `findings`."""
    if not isinstance(value, dict):
        findings.append(Finding("not-object", 0, "expected an object"))
        return []
    try:
        rows = shape.rows(value, all_pairs)
    except LeftOutError as error:
        findings.append(Finding(error.code, 0, error.reason, error.hint))
        return []
    pairs = []
    for place, row in enumerate(rows, 1):
        name = str(number) if len(rows) == 1 else f"{number}-{place}"
        found: list[Finding] = []
        pair = read_preference(row | {"id": name}, number, set(KEYS), found)
        findings += found
        if pair is not None and all(LEVELS[finding.code] == WARNING for finding in found):
            pairs.append(pair)
    return pairs
