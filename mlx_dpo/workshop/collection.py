"""Pairs on their way into a preference file: gathered, compared with each other, counted, written.

A collection keeps its pairs in a temporary file, so that a pair can still be withdrawn when a later
one contradicts it, and a big file needs little memory. `rework` gathers pairs from preference files
(filter, merge, split); `importers.reading` from other people's data.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from mlx_dpo.errors import DataError, writing
from mlx_dpo.files import new_file
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.json_text import Finding, RawRow
from mlx_dpo.preferences.reader import Repeats, preference_line, read_rows, text_digest
from mlx_dpo.preferences.schema import ERROR, LEVELS, WARNING, Problem, Problems
from mlx_dpo.records import Preference

# The code under which a pair is left out; None if it stays.
PairFilter = Callable[[Preference], str | None]


class CollectionAccount(NamedTuple):
    """What became of the rows. ``read == kept + sum(dropped.values())``, always."""

    read: int
    kept: int  # rows with at least one pair
    dropped: Counter[str]  # rows by code
    pairs: int


class Collection:
    """Takes the pairs of each source row, and writes those that hold.

    A row and an earlier one that prefer opposite ways are both left out: nobody knows which of
    them is right.

    Args:
        problems: Gets every problem.

    Attributes:
        prompts: Digest of the prompt of each pair, 16 bytes.
        kinds: Kind of each pair.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.prompts: list[bytes] = []
        self.kinds: list[str] = []
        self._read = 0
        self._dropped: Counter[str] = Counter()
        self._repeats = Repeats()
        self._row_of = array("Q")  # row of each pair
        self._has_pairs = bytearray()  # by row, whether it has pairs
        self._sources: dict[int, int] = {}  # source rows of a row, where they are several
        self._withdrawn: set[int] = set()
        with writing("a temporary file"):
            self._spool = TemporaryFile()  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> "Collection":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of a full disk, which has been reported
            self._spool.close()

    def take(
        self,
        file: Path,
        raw: RawRow,
        pairs: Sequence[Preference],
        findings: Sequence[Finding] = (),
        *,
        number: int | None = None,
        rows: int = 1,
    ) -> None:
        """Take the pairs of a row, or of several that are pairs together.

        Args:
            file: The file of the row, for messages.
            raw: The row; another one at each call.
            pairs: Its pairs, possibly none. Their ids are written.
            findings: Its problems. If it has no pairs, one of them is the reason.
            number: Of the row, in all files; None for the next.
            rows: The rows that the pairs were made of, which are kept or dropped together.
        """
        self._read += rows
        row = self._read if number is None else number
        if rows > 1:
            self._sources[row] = rows
        code, repeated = self._compare(row, pairs)
        for finding in (*findings, *repeated):
            place = raw.place(finding)
            self.problems.add(
                Problem(str(file), *place, raw.number, finding.code, finding.reason, finding.hint)
            )
        if not pairs:
            code = next(f.code for f in findings if LEVELS[f.code] != WARNING)
        if code is not None:
            self._dropped[code] += rows
            return
        for pair in pairs:
            self._add(row, pair)

    def leave_out(self, code: str) -> None:
        """Count a row that is left out on the caller's wish, which is no problem of the file."""
        self._read += 1
        self._dropped[code] += 1

    def account(self) -> CollectionAccount:
        """What became of the rows so far."""
        dropped = Counter(self._dropped)
        if self._withdrawn:
            withdrawn = (self._sources.get(row, 1) for row in self._withdrawn)
            dropped["contradiction"] += sum(withdrawn)
        return CollectionAccount(
            self._read, self._read - dropped.total(), dropped, sum(self.holds())
        )

    def holds(self) -> list[bool]:
        """For each pair, whether no later row contradicted it."""
        return [row not in self._withdrawn for row in self._row_of]

    def write(
        self,
        path: Path,
        keep: Callable[[int], bool] = lambda _: True,
        *,
        replace: bool = False,
    ) -> int:
        """Write the pairs that hold as JSON lines; returns their number.

        Args:
            path: The file; it appears whole or not at all.
            keep: Whether a pair goes into this file, by its index in `prompts`.
            replace: Whether a file that is there may be replaced.

        Raises:
            DiskError: If the file can't be written.
        """
        written = 0
        with writing("a temporary file"):
            self._spool.seek(0)
        with new_file(path, replace=replace) as file:
            for index, holds in enumerate(self.holds()):
                line = self._spool.readline()
                if holds and keep(index):
                    file.write(line)
                    written += 1
        return written

    def _compare(self, row: int, pairs: Sequence[Preference]) -> tuple[str | None, list[Finding]]:
        """The code for which a row is left out, and problems with earlier rows."""
        findings: list[Finding] = []
        code = None
        for pair in pairs:
            repeated, opposite = self._repeats.look(pair, row)
            findings += repeated
            code = next((f.code for f in repeated if LEVELS[f.code] == ERROR), code)
            if opposite is not None:
                code = "contradiction"
                if self._has_pairs_of(opposite):
                    self._withdrawn.add(opposite)
        return code, findings

    def _has_pairs_of(self, row: int) -> bool:
        return row < len(self._has_pairs) and bool(self._has_pairs[row])

    def _add(self, row: int, pair: Preference) -> None:
        with writing("a temporary file"):
            self._spool.write(preference_line(pair).encode())
        self._row_of.append(row)
        self._has_pairs.extend(bytes(max(0, row + 1 - len(self._has_pairs))))
        self._has_pairs[row] = 1
        self.prompts.append(text_digest(pair.prompt))
        self.kinds.append(pair.kind)


def rework(
    files: Sequence[Path],
    collection: Collection,
    *,
    filters: Sequence[PairFilter] = (),
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Take the pairs of preference files into a collection.

    Rows that can't be used are left out, then those that a filter names a code for. With several
    files, ids get the file's name in front. `progress` is called now and then with the share of the
    current file that is done, 0 to 1.

    Raises:
        UsageError: If a file is not there.
        DataError: If one holds no row at all.
    """
    for file, prefix in zip(files, _id_prefixes(files), strict=True):
        for row in read_rows(file, collection.problems, compare=False):
            pair, code = row.preference, row.code
            if pair is None or code is not None:
                collection.leave_out(code or "wrong-type")
                continue
            codes = (code_of(pair) for code_of in filters)
            code = next((code for code in codes if code is not None), None)
            if code is not None:
                collection.leave_out(code)
                continue
            collection.take(file, row.raw, [replace(pair, id=prefix + pair.id)])
            if row.raw.number % 256 == 0:
                progress(row.raw.share)
    progress(1.0)


def of_kinds(kinds: Sequence[str]) -> PairFilter:
    """Keep only pairs of some kinds."""
    return lambda pair: None if pair.kind in kinds else "other-kind"


def length_ratio(limit: float, chat: ChatFormat | None = None) -> PairFilter:
    """Leave out pairs whose longer answer is more than `limit` times as long as the shorter.

    Args:
        limit: At least 1.
        chat: Lengths are in the tokens of this format; in characters if it is None.
    """

    def code(pair: Preference) -> str | None:
        if chat is None:
            sizes = [
                sum(len(turn.content) for turn in side) for side in (pair.chosen, pair.rejected)
            ]
        else:
            (encoded,) = chat.encode_pairs([pair])
            if isinstance(encoded, DataError):
                return "template"  # the chat template refuses the pair
            sizes = [len(encoded[0].chosen_ids), len(encoded[0].rejected_ids)]
        return "length-ratio" if max(sizes) > limit * min(sizes) else None

    return code


def all_but(pairs: Iterable[Preference], code: str) -> PairFilter:
    """Leave out some pairs, under a code."""
    digests = {text_digest(pair.prompt, pair.chosen, pair.rejected) for pair in pairs}

    def found(pair: Preference) -> str | None:
        return code if text_digest(pair.prompt, pair.chosen, pair.rejected) in digests else None

    return found


def not_again() -> PairFilter:
    """Leave out a pair that this filter has seen before."""
    seen: set[bytes] = set()

    def code(pair: Preference) -> str | None:
        digest = text_digest(pair.prompt, pair.chosen, pair.rejected)
        if digest in seen:
            return "again"
        seen.add(digest)
        return None

    return code


def _id_prefixes(files: Sequence[Path]) -> list[str]:
    """What keeps the ids of several files apart: their names, numbered where two are the same."""
    if len(files) == 1:
        return [""]
    counts = Counter(file.stem for file in files)
    return [
        f"{file.stem}:" if counts[file.stem] == 1 else f"{number}-{file.stem}:"
        for number, file in enumerate(files, 1)
    ]
