"""Pairs on their way into a preference file: compared with each other, counted, written at once.

They wait in a temporary file on disk, so that a pair can still be withdrawn when a later one
contradicts it, and a big file needs little memory.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import NamedTuple

from mlx_dpo.errors import DiskError
from mlx_dpo.files import new_file
from mlx_dpo.preferences.json_text import Finding, RawRow
from mlx_dpo.preferences.reader import Repeats, preference_line, text_digest
from mlx_dpo.preferences.schema import ERROR, LEVELS, WARNING, Problem, Problems
from mlx_dpo.records import Preference
from mlx_dpo.workshop.candidates import Answer, Candidates


class Account(NamedTuple):
    """What became of the rows. ``read == kept + sum(dropped.values())``, always.

    Attributes:
        read: Rows of the source.
        kept: Rows that gave at least one pair.
        dropped: The others, by code.
        pairs: Pairs that were collected.
    """

    read: int
    kept: int
    dropped: Counter[str]
    pairs: int


class Collection:
    """Takes the pairs of each source row, and writes those that hold.

    A row and an earlier one that prefer opposite ways are both left out: nobody knows which of
    them is right.

    Args:
        problems: Told of everything that is wrong.
    """

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.prompts: list[bytes] = []  # of each pair, 16 bytes that stand for its prompt
        self.kinds: list[str] = []
        self._read = 0
        self._dropped: Counter[str] = Counter()
        self._repeats = Repeats()
        self._row_of = array("Q")
        self._withdrawn: set[int] = set()
        try:
            self._spool = TemporaryFile()  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise DiskError(f"no room for a temporary file: {error.strerror}") from None

    def __enter__(self) -> "Collection":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._spool.close()

    def take(
        self,
        file: Path,
        raw: RawRow,
        pairs: Sequence[Preference],
        findings: Sequence[Finding] = (),
    ) -> None:
        """Take what a row gave.

        Args:
            file: Where the row stands, for messages.
            raw: The row; a new one at each call.
            pairs: Its pairs, possibly none. Their ids are written.
            findings: What is wrong with it. If it gave no pairs, one says why.
        """
        row = self._read = self._read + 1
        code, found = self._compare(row, pairs)
        for finding in (*findings, *found):
            line, column = raw.place(finding)
            self.problems.add(
                Problem(
                    *(str(file), line, column, raw.number),
                    *(finding.code, finding.reason, finding.hint),
                )
            )
        if not pairs:
            code = next(f.code for f in findings if LEVELS[f.code] != WARNING)
        if code is not None:
            self._dropped[code] += 1
            return
        for pair in pairs:
            self._add(row, pair)

    def leave_out(self, code: str) -> None:
        """Count a row that is left out on the caller's wish, which is no problem of the file."""
        self._read += 1
        self._dropped[code] += 1

    def account(self) -> Account:
        """What became of the rows so far."""
        dropped = Counter(self._dropped)
        if self._withdrawn:
            dropped["contradiction"] += len(self._withdrawn)
        pairs = sum(self.holds())
        return Account(self._read, self._read - dropped.total(), dropped, pairs)

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
        """Write the pairs that hold as JSON lines.

        Args:
            path: The file; it appears whole or not at all.
            keep: Asked for each pair, by its place in `prompts`, whether it goes into this file.
            replace: Whether a file that is there may be replaced.

        Returns:
            How many were written.

        Raises:
            DiskError: If the file can't be written.
        """
        written = 0
        self._spool.seek(0)
        with new_file(path, replace=replace) as file:
            for place, holds in enumerate(self.holds()):
                line = self._spool.readline()
                if holds and keep(place):
                    file.write(line)
                    written += 1
        return written

    def _compare(self, row: int, pairs: Sequence[Preference]) -> tuple[str | None, list[Finding]]:
        found: list[Finding] = []
        code = None
        for pair in pairs:
            again, opposite = self._repeats.look(pair, row)
            found += again
            code = next((finding.code for finding in again if LEVELS[finding.code] == ERROR), code)
            if opposite is not None:
                code = "contradiction"
                if self._is_held(opposite):
                    self._withdrawn.add(opposite)
        return code, found

    def _is_held(self, row: int) -> bool:
        at = bisect_left(self._row_of, row)
        return at < len(self._row_of) and self._row_of[at] == row

    def _add(self, row: int, pair: Preference) -> None:
        try:
            self._spool.write(preference_line(pair).encode())
        except OSError as error:
            raise DiskError(f"no room for a temporary file: {error.strerror}") from None
        self._row_of.append(row)
        self.prompts.append(text_digest(pair.prompt))
        self.kinds.append(pair.kind)


# --- Two answers to a prompt that somebody has to choose between.


class Contest(NamedTuple):
    """Two different answers to a prompt.

    Attributes:
        id: Of the pair it may become.
        row: Where they come from.
        first: One answer.
        second: The other.
    """

    id: str
    row: Candidates
    first: Answer
    second: Answer


def different_answers(row: Candidates) -> list[Answer]:
    """The answers of a row that are not blank, each text once."""
    return list({answer.text: answer for answer in row.answers if answer.text.strip()}.values())


def contests_of(row: Candidates) -> list[Contest]:
    """Every two different answers of a row."""
    pairs = list(combinations(different_answers(row), 2))
    if len(pairs) == 1:
        return [Contest(row.id, row, *pairs[0])]
    return [Contest(f"{row.id}-{number}", row, *pair) for number, pair in enumerate(pairs, 1)]
