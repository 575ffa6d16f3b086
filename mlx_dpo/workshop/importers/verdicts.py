"""Verdicts between two answers: words that name one of them, and numbers that count them.

Whether a number counts from 0 or from 1 is seen in a whole file, not in a row.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mlx_dpo.errors import DataError
from mlx_dpo.workshop.importers.fields import VERDICTS, Fields, first_of, number

_NOUNS = "response|answer|completion|output|candidate|reply|generation"
_ANSWER = re.compile(rf"({_NOUNS})([ _-]?)([ab]|[0-9])", re.IGNORECASE)
_NAMED = re.compile(
    rf"(?:{_NOUNS}|model|conversation|assistant|option|choice|text)?([ab]|[0-9])|(left|first)"
    "|(right|second)"
)
_GAP = re.compile(r"(?<=[a-z0-9])[\s_-]+(?=[a-z0-9])")
_TIES = {
    *("tie", "both", "neither", "bothbad", "bothgood", "tiebothbad", "tieinconsistent", "same"),
    *("equal", "draw"),
}
_MARKS = {("a", "b"): None, ("1", "2"): 1, ("0", "1"): 0}  # and the first number, if it is one


class Vote(NamedTuple):
    """Where a row has its answers and its verdict.

    Attributes:
        answers: Columns of answers; more than two may be numbered on.
        verdict: The column of the verdict.
        first: The number in the first answer's name; None if that is a letter.
    """

    answers: tuple[str, ...]
    verdict: str
    first: int | None


def vote_of(row: Fields) -> Vote | None:
    """The columns of a row with two answers and a verdict; None where it is no such row."""
    verdict = first_of(row, VERDICTS)
    if verdict is None:
        return None
    groups: dict[tuple[str, str, bool], dict[str, str]] = {}
    for name, value in row.items():
        found = _ANSWER.fullmatch(name) if value is not None else None
        if found is not None:
            noun, gap, mark = found.groups()
            group = groups.setdefault((noun, gap, mark.isdigit()), {})
            group[mark.lower()] = name
    for group in groups.values():
        marks = sorted(group)
        first = (marks[0], marks[1]) if len(marks) > 1 else ("", "")
        if first in _MARKS:
            return Vote(tuple(group[mark] for mark in marks), verdict, _MARKS[first])
    return None


def named(value: Any, answers: tuple[str, ...]) -> float | None:
    """A verdict in a word: 1 for the first answer, -1 for the second, 0 for a tie, or None.

    Args:
        value: The verdict.
        answers: The columns of the two answers, whose names are verdicts too.
    """
    if not isinstance(value, str):
        return None
    word = _plain(value)
    names = [_plain(name) for name in answers[:2]]
    if word in names:
        return 1 - 2 * names.index(word)
    if re.sub(r"[\W_]+", "", word) in _TIES:
        return 0
    found = _NAMED.fullmatch(word)
    if found is None or (found[1] or "").isdigit():
        return None
    return 1 if found[2] or found[1] == "a" else -1


def counted(value: Any, answers: tuple[str, ...]) -> float | None:
    """A verdict that is a number, alone or after another word than that of the columns."""
    if isinstance(value, str) and named(value, answers) is None:
        found = _NAMED.fullmatch(_plain(value))
        value = found[1] if found else value
    return number(value)


def _plain(text: str) -> str:
    return _GAP.sub("", text.strip(" \t\r\n[]().*\"'").lower())


class Numbers:
    """What the numbers of a file's verdicts mean.

    Args:
        file: The file.
        rows: All its rows.
    """

    def __init__(self, file: Path, rows: Iterable[Any]) -> None:
        self._file = file
        self._seen: dict[Vote, set[float]] = {}
        for row in rows:
            for vote, found in numbered(row):
                self._seen.setdefault(vote, set()).add(found)

    def name(self, row: Fields, line: int, notes: Counter[str]) -> Fields:
        """A row whose number is the name of a column, or ``tie``, with a note on the reading.

        Raises:
            DataError: If it is not known whether the numbers count from 0 or from 1.
        """
        for vote, found in numbered(row):
            first = _first(self._seen[vote], vote.first)
            if first is None:
                raise DataError(f"{self._file}:{line}: {_refusal(vote, self._seen[vote])}")
            index = found - first
            meant = vote.answers[int(index)] if index in (0, 1) else "tie"
            notes[f"{found:g} in {vote.verdict!r} was read as {meant!r}"] += 1
            row = row | {vote.verdict: meant}
        return row


def numbered(row: Any) -> list[tuple[Vote, float]]:
    """The vote of a row and its number, where its verdict is one."""
    vote = vote_of(row) if isinstance(row, dict) else None
    if vote is None or len(vote.answers) > 2:
        return []
    found = counted(row[vote.verdict], vote.answers)
    return [] if found is None else [(vote, found)]


def _first(seen: set[float], own: int | None) -> int | None:
    """The number of the first answer; None where that is not known.

    Args:
        seen: All numbers of the file.
        own: The number in the first answer's name, if it has one.
    """
    if not seen <= {0, 0.5, 1, 1.5, 2} or {0.5, 1.5} <= seen:
        return None  # a scale
    from_0, from_1 = bool(seen & {0, 0.5}), bool(seen & {1.5, 2})
    if own == 1:  # 0 may be a tie where there is a 2
        return None if 0.5 in seen or (from_0 and 2 not in seen) else 1
    if own == 0:
        return None if 1.5 in seen or (from_1 and 0 not in seen) else 0
    return 1 if 2 in seen and not from_0 else None


def _refusal(vote: Vote, seen: set[float]) -> str:
    one, two = vote.answers
    numbers = ", ".join(f"{each:g}" for each in sorted(seen)[:6])
    text = f"{vote.verdict!r} holds {numbers} for {one!r} and {two!r}"
    if not seen <= {0, 0.5, 1, 1.5, 2}:
        return f"{text}, which is not known as a verdict; write the name of the better column"
    ways = {n: shlex.quote(f"response_{n}={one},response_{n + 1}={two}") for n in (0, 1)}
    from_0, from_1 = f"--columns {ways[0]}", f"--columns {ways[1]}"
    if vote.first == 1:
        return f"{text}; they may count from 0; if 0 is the first answer: {from_0}"
    if vote.first == 0:
        return f"{text}; they may count from 1; if 1 is the first answer: {from_1}"
    return f"{text}; say what they count from: {from_0} if 0 is the first, {from_1} if 1 is"
