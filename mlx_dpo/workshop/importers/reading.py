"""An import: rows of files, through a format and the checks of preference rows, to a collection."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.json_text import Finding, RawRow
from mlx_dpo.preferences.schema import KEYS, LEVELS, WARNING, read_preference
from mlx_dpo.records import Preference
from mlx_dpo.workshop.collection import Collection
from mlx_dpo.workshop.importers.formats import FORMATS, Format, LeftOutError, detect
from mlx_dpo.workshop.importers.sources import source_rows

LocatedRow = tuple[Path, RawRow]  # the file of a row, and the row
_NUM_TRIED = 100  # first rows, one of which must have a known shape


def open_rows(files: Sequence[Path], name: str) -> tuple[Format, Iterator[LocatedRow], int]:
    """The format of some files, their rows, and the number of the row that decided the format.

    Args:
        files: Data files.
        name: A key of `FORMATS` (then the number is 0), or "auto": the first row of a known shape
            decides.

    Raises:
        UsageError: If a file can't be read.
        DataError: If none of the first rows has a known shape.
    """
    rows = ((file, raw) for file in files for raw in source_rows(file))
    if name != "auto":
        return FORMATS[name], rows, 0
    tried: list[LocatedRow] = []
    for located in rows:
        tried.append(located)
        detected = detect(located[1].value)
        if detected is not None:
            return detected, chain(tried, rows), len(tried)
        if len(tried) == _NUM_TRIED:
            break
    if not tried:
        raise DataError(f"{files[0]}: no rows in the file")
    file, raw = tried[0]
    keys = sorted(raw.value)[:12] if isinstance(raw.value, dict) else "no object"
    first = raw.findings[0].reason if raw.findings else f"the first has {keys}"
    raise DataError(
        f"{file}:{raw.line}: the shape of its rows is not known ({first}); name it with "
        f"--format: {', '.join(FORMATS)}"
    )


def collect(
    rows: Iterable[LocatedRow],
    row_format: Format,
    collection: Collection,
    *,
    all_pairs: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Take every row of a source into a collection.

    The id of a pair is the number of its row: ``12``, or ``12-1``, ``12-2`` if a row has several.

    Args:
        rows: From `open_rows`.
        row_format: Their format.
        collection: Gets the pairs and the problems.
        all_pairs: Whether a ranking gives all its pairs, or its best against its worst.
        progress: Called now and then with the share of the current file that is done, 0 to 1.
    """
    for number, (file, raw) in enumerate(rows, 1):
        findings = list(raw.findings)
        pairs: list[Preference] = []
        if all(LEVELS[finding.code] == WARNING for finding in findings):
            pairs = _pairs(raw.value, number, row_format, all_pairs, findings)
        collection.take(file, raw, pairs, findings)
        collection.problems.cut_short |= raw.ends
        if number % 256 == 0:
            progress(raw.share)
    progress(1.0)


def _pairs(
    value: Any, number: int, row_format: Format, all_pairs: bool, findings: list[Finding]
) -> list[Preference]:
    """The usable pairs of a row; `findings` get its problems."""
    if not isinstance(value, dict):
        findings.append(Finding("not-object", 0, "expected an object"))
        return []
    try:
        rows = row_format.rows(value, all_pairs)
    except LeftOutError as error:
        findings.append(Finding(error.code, 0, str(error)))
        return []
    pairs = []
    for rank, row in enumerate(rows, 1):
        name = str(number) if len(rows) == 1 else f"{number}-{rank}"
        of_pair: list[Finding] = []
        pair = read_preference(row | {"id": name}, number, set(KEYS), of_pair)
        findings += of_pair
        if pair is not None and all(LEVELS[finding.code] == WARNING for finding in of_pair):
            pairs.append(pair)
    return pairs
