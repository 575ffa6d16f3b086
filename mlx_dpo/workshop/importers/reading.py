"""An import: rows of files, through a format and the checks of preference rows, to a collection."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.json_text import Finding, RawRow
from mlx_dpo.preferences.reader import text_digest
from mlx_dpo.preferences.schema import KEYS, LEVELS, WARNING, read_preference
from mlx_dpo.records import Preference
from mlx_dpo.workshop.collection import Collection
from mlx_dpo.workshop.importers.fields import Answer, Fields, Format, LeftOutError, Row, is_blank
from mlx_dpo.workshop.importers.formats import FORMATS, detect, what_is_missing
from mlx_dpo.workshop.importers.labelled import Groups, Held
from mlx_dpo.workshop.importers.sources import source_rows
from mlx_dpo.workshop.importers.verdicts import Numbers, numbered
from mlx_dpo.workshop.importers.votes import VOTES

LocatedRow = tuple[Path, RawRow]  # the file of a row, and the row
_NUM_TRIED = 100  # first rows, one of which must have a known shape


@dataclass
class Summary:
    """What an import found, beyond what became of each row.

    Attributes:
        shapes: Rows by format.
        unused: Rows in which a column held something that was not used, by column.
        notes: Rows to which a remark applies, by remark.
    """

    shapes: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


def open_rows(
    files: Sequence[Path],
    name: str,
    columns: Mapping[str, str] | None = None,
    found: set[str] | None = None,
    notes: Counter[str] | None = None,
) -> tuple[Format, Iterator[LocatedRow], int]:
    """The format of some files, their rows, and the number of the row that decided the format.

    Args:
        files: Data files.
        name: A key of `FORMATS` (then the number is 0), or "auto": the first row of a known shape
            decides, and every later row of a known shape is read as that.
        columns: Columns of the files by the names they shall have.
        found: Gets those of `columns` that the rows have, as they are read.
        notes: Gets rows by how a number in them was read, as they are read.

    Raises:
        UsageError: If a file can't be read.
        DataError: If none of the first rows has a known shape.
    """
    seen = set() if found is None else found
    notes = Counter() if notes is None else notes

    def rows_of(file: Path) -> Iterator[RawRow]:
        return (_renamed(raw, columns, seen) for raw in source_rows(file))

    rows: Iterator[LocatedRow]
    if name in ("auto", VOTES.name):
        rows = _numbers_named(files, rows_of, notes)
    else:
        rows = ((file, raw) for file in files for raw in rows_of(file))
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
    row = raw.value if isinstance(raw.value, dict) else {}
    keys = sorted(row)[:12] if isinstance(raw.value, dict) else "no object"
    first = raw.findings[0].reason if raw.findings else f"the first has {keys!s:.300}"
    raise DataError(
        f"{file}:{raw.line}: the shape of its rows is not known ({first}): {what_is_missing(row)}"
    )


def _numbers_named(
    files: Sequence[Path], rows_of: Callable[[Path], Iterator[RawRow]], notes: Counter[str]
) -> Iterator[LocatedRow]:
    """Rows whose verdict names a column; a file whose verdicts are numbers is read twice."""
    for file in files:
        numbers: Numbers | None = None
        for raw in rows_of(file):
            if numbered(raw.value) and detect(raw.value) is VOTES:
                if numbers is None:
                    numbers = Numbers(file, (each.value for each in rows_of(file)))
                raw.value = numbers.name(raw.value, raw.line, notes)
            yield file, raw


def _renamed(raw: RawRow, columns: Mapping[str, str] | None, seen: set[str]) -> RawRow:
    if columns and isinstance(raw.value, dict):
        seen.update(old for old in columns.values() if old in raw.value)
        taken = {new: raw.value[old] for new, old in columns.items() if old in raw.value}
        rest = {key: raw.value[key] for key in raw.value if key not in columns.values()}
        raw.value = rest | taken
    return raw


def collect(
    rows: Iterable[LocatedRow],
    row_format: Format,
    collection: Collection,
    *,
    each: bool = True,
    all_pairs: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> Summary:
    """Take every row of a source into a collection.

    The id of a pair is the number of its row: ``12``, or ``12-1``, ``12-2`` if a row has several.
    A pair of two rows has that of its better one.

    Args:
        rows: From `open_rows`.
        row_format: Their format.
        collection: Gets the pairs and the problems.
        each: Whether a row of another known shape is read as that.
        all_pairs: Whether a ranking gives all its pairs, or its best against its worst.
        progress: Called now and then with the share of the current file that is done, 0 to 1.
    """
    reading = _Reading(collection, all_pairs)
    for number, (file, raw) in enumerate(rows, 1):
        shape = (each and detect(raw.value)) or row_format
        reading.take(number, file, raw, shape)
        collection.problems.cut_short |= raw.ends
        if number % 256 == 0:
            progress(raw.share)
    reading.take_groups()
    progress(1.0)
    return reading.summary


class _Reading:
    """The state of an import."""

    def __init__(self, collection: Collection, all_pairs: bool) -> None:
        self.summary = Summary()
        self._collection = collection
        self._all_pairs = all_pairs
        self._groups = Groups()
        self._given: set[bytes] = set()  # pairs of formats in which each is to come once

    def take(self, number: int, file: Path, raw: RawRow, shape: Format) -> None:
        """Read a row; one that holds a single answer is held until the end."""
        findings = list(raw.findings)
        pairs: list[Preference] = []
        if all(LEVELS[finding.code] == WARNING for finding in findings):
            if not isinstance(raw.value, dict):
                findings.append(Finding("not-object", 0, "expected an object"))
            else:
                self.summary.shapes[shape.name] += 1
                try:
                    read = self._read(Row(raw.value), shape)
                except LeftOutError as error:
                    findings.append(Finding(error.code, 0, str(error), error.hint))
                else:
                    if isinstance(read, Answer):
                        self._groups.add(Held(number, file, raw, read))
                        return
                    names = [f"{number}-{rank}" for rank in range(1, len(read) + 1)]
                    named = zip(names if len(names) > 1 else [str(number)], read, strict=True)
                    pairs = self._checked(list(named), number, findings)
                    if shape.once:
                        pairs = self._first_time(pairs, findings)
        self._collection.take(file, raw, pairs, findings, number=number)

    def _read(self, row: Row, shape: Format) -> Answer | list[Fields]:
        """The pairs of a row, or the one answer that it holds."""
        found = shape.read(row, self._all_pairs)
        self.summary.unused.update(set(row.unused()))
        self.summary.notes.update(set(row.notes))
        return found

    def take_groups(self) -> None:
        """Pair the rows that were held."""
        for rows, twos in self._groups.pairs(self._all_pairs):
            paired = {held.number for two in twos for held in two}
            for held in rows:
                if held.number not in paired:
                    reason = "no other answer to its prompt is better or worse"
                    alone = [Finding("no-pair", 0, reason)]
                    self._collection.take(held.file, held.raw, [], alone, number=held.number)
            # Rows that share no row are kept or dropped by themselves.
            for unit in [twos] if self._all_pairs and twos else [[two] for two in twos]:
                self._take_unit(unit)

    def _take_unit(self, twos: list[tuple[Held, Held]]) -> None:
        findings: list[Finding] = []
        pairs: list[Preference] = []
        for better, worse in twos:
            made = {
                "prompt": better.answer.prompt,
                "chosen": better.answer.turns,
                "rejected": worse.answer.turns,
            }
            if better.answer.kind:
                made["kind"] = better.answer.kind
            name = f"{better.number}-{worse.number}" if len(twos) > 1 else str(better.number)
            pairs += self._checked([(name, made)], better.number, findings)
        rows = {held.number: held for two in twos for held in two}
        first = rows[min(rows)]
        self._collection.take(
            first.file, first.raw, pairs, findings, number=first.number, rows=len(rows)
        )

    def _checked(
        self, rows: list[tuple[str, Fields]], number: int, findings: list[Finding]
    ) -> list[Preference]:
        """The usable of some pairs with their ids; `findings` get the problems."""
        pairs = []
        for name, row in rows:
            of_pair: list[Finding] = []
            pair = read_preference(row | {"id": name}, number, set(KEYS), of_pair)
            if pair is not None and is_blank(pair.prompt[-1].content):
                of_pair = [Finding("no-pair", 0, "the prompt is empty")]
            findings += of_pair
            if pair is not None and all(LEVELS[found.code] == WARNING for found in of_pair):
                pairs.append(pair)
        return pairs

    def _first_time(self, pairs: list[Preference], findings: list[Finding]) -> list[Preference]:
        new = []
        for pair in pairs:
            digest = text_digest(pair.prompt, pair.chosen, pair.rejected)
            if digest not in self._given:
                self._given.add(digest)
                new.append(pair)
        if pairs and not new:
            reason = "an earlier row gave the same pair"
            findings.append(Finding("no-pair", 0, reason))
        return new
