"""What can be wrong with a preference file: for each problem a code, a place, a reason, a way out.

All problems of a file are found in one pass. A few are kept to be shown, the rest is counted and,
where there is a log, written to it.
"""

import json
from collections import Counter
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from typing import IO, NamedTuple, TextIO

ERROR = "error"  # the file is refused; with drop_bad the row is left out instead
LEFT_OUT = "left out"  # the row teaches nothing: always left out, always counted
WARNING = "warning"  # the row is used

LEVELS = {
    "bad-utf8": ERROR,
    "bad-json": ERROR,
    "line-too-long": ERROR,
    "not-object": ERROR,
    "duplicate-key": ERROR,
    "nan": ERROR,
    "missing-key": ERROR,
    "wrong-type": ERROR,
    "lone-surrogate": ERROR,
    "duplicate-id": ERROR,
    "contradiction": ERROR,
    "leak": ERROR,
    "special-token": ERROR,
    "template": ERROR,
    "equal": LEFT_OUT,
    "too-long": LEFT_OUT,
    "no-common-prompt": LEFT_OUT,
    "no-pair": LEFT_OUT,
    "tie": LEFT_OUT,
    "response-cut": WARNING,
    "empty": WARNING,
    "whitespace-only": WARNING,
    "bom": WARNING,
    "unknown-key": WARNING,
    "control-character": WARNING,
    "duplicate-pair": WARNING,
}
CODES = tuple(LEVELS)
SHOWN = 20


class Problem(NamedTuple):
    """One problem.

    Attributes:
        file: The preference file, as it was named.
        line: Where it is, counted from 1.
        column: The same in characters.
        row: Row of the file, counted from 1; 0 for the file itself.
        code: A key of `LEVELS`.
        reason: What is wrong.
        hint: What to do about it.
    """

    file: str
    line: int
    column: int
    row: int
    code: str
    reason: str
    hint: str

    @property
    def level(self) -> str:
        """Error, left out or warning; it follows from the code."""
        return LEVELS[self.code]

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place}: {self.code}: {self.reason}" + (f"; {self.hint}" if self.hint else "")


class Problems:
    """Counts problems, keeps the first of each level, and writes all of them to a log.

    Args:
        log: Where each problem becomes a line of JSON; None for nowhere.

    Attributes:
        counts: Problems by code.
        cut_short: Whether a broken array kept the rest of a file from being read.
    """

    def __init__(self, log: TextIO | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.cut_short = False
        self._log = log
        self._first: dict[str, list[Problem]] = {ERROR: [], LEFT_OUT: [], WARNING: []}

    def add(self, problem: Problem) -> None:
        """Take note of one more."""
        self.counts[problem.code] += 1
        first = self._first[problem.level]
        if len(first) < SHOWN:
            first.append(problem)
        if self._log is not None:
            line = {**problem._asdict(), "level": problem.level}
            self._log.write(json.dumps(line) + "\n")

    def add_log(self, lines: Iterable[bytes], file: str) -> None:
        """Take note of the problems that another collection wrote to its log.

        Args:
            lines: The log's, one after the other.
            file: How the file is named now.

        Raises:
            ValueError: If it is not such a log.
        """
        for line in lines:
            self.add(read_problem(line)._replace(file=file))

    @property
    def num_errors(self) -> int:
        """Problems for which a file is refused."""
        return sum(n for code, n in self.counts.items() if LEVELS[code] == ERROR)

    def shown(self) -> list[Problem]:
        """The first twenty: errors, then rows left out, then warnings."""
        return [problem for first in self._first.values() for problem in first][:SHOWN]


def mapped(log: IO[bytes]) -> mmap | None:
    """A log that is on disk and not in memory; readable when the file is closed or has no name.

    Returns:
        None where nothing was wrong: nothing can't be mapped.
    """
    has_lines = log.seek(0, 2)
    return mmap(log.fileno(), 0, access=ACCESS_READ) if has_lines else None


def read_problem(line: bytes) -> Problem:
    """A line of a log as a problem again.

    Raises:
        ValueError: If it is not one.
    """
    fields = json.loads(line)
    try:
        problem = Problem(*(fields[name] for name in Problem._fields))
    except (KeyError, TypeError):
        raise ValueError("not a line of a problem log") from None
    if problem.code not in LEVELS:
        raise ValueError(f"no such code: {problem.code!r}")
    return problem


def by_code(counts: Counter[str]) -> str:
    """`2 missing-key, 1 equal`: the counts, the most serious code first."""
    return ", ".join(f"{counts[code]} {code}" for code in CODES if counts[code])
