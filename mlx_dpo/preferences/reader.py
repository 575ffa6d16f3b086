"""Preference rows from a file: every row checked, every problem of the file found in one pass."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.json_text import Finding, RawRow, has_bom, raw_rows
from mlx_dpo.preferences.schema import (
    ERROR,
    KEYS,
    LEVELS,
    WARNING,
    Problem,
    Problems,
    read_preference,
)
from mlx_dpo.records import Message, Preference


@dataclass(slots=True)
class Row:
    """One row of a preference file.

    Attributes:
        raw: The row as it stands in the file.
        preference: What it says; None where it is not usable.
        code: Why it is left out (the first such problem); None where it is kept.
        opposite: Number of an earlier row that prefers the other way round.
    """

    raw: RawRow
    preference: Preference | None
    code: str | None = None
    opposite: int | None = None

    def note(self, file: Path, finding: Finding, problems: Problems) -> None:
        """Pass a finding on, with its place, and remember whether the row is left out for it."""
        line, column = self.raw.place(finding)
        problems.add(
            Problem(
                *(str(file), line, column, self.raw.number),
                *(finding.code, finding.reason, finding.hint),
            )
        )
        if self.code is None and LEVELS[finding.code] != WARNING:
            self.code = finding.code


def read_rows(path: str | Path, problems: Problems, *, compare: bool = True) -> Iterator[Row]:
    """Every row of a file, good or not, one at a time.

    A row is an object with ``prompt`` (or ``user``), ``chosen``, ``rejected`` and optionally
    ``kind`` and ``id``. Texts are plain strings without markers, or lists of
    ``{"role": ..., "content": ...}`` messages. Without ``prompt``, message lists that begin with
    the same turns share those as their prompt.

    Args:
        path: A JSON array or JSON lines; which of the two it is, is read off its first character.
        problems: Told of everything that is wrong.
        compare: Whether rows are compared with each other too.

    Yields:
        The rows in the order of the file.

    Raises:
        UsageError: If there is no such file.
        DataError: If it holds no row at all.
    """
    path = Path(path)
    if has_bom(path):
        hint = "save the file as UTF-8 without it"
        reason = "the file begins with a byte order mark"
        problems.add(Problem(str(path), 1, 1, 0, "bom", reason, hint))
    repeats = Repeats()
    known = set(KEYS)  # an unknown key is told of once, and not for each of its rows
    raw = None
    for raw in raw_rows(path):
        found: list[Finding] = []
        usable = not any(LEVELS[finding.code] == ERROR for finding in raw.findings)
        preference = read_preference(raw.value, raw.number, known, found) if usable else None
        if any(LEVELS[finding.code] == ERROR for finding in found):
            preference = None
        row = Row(raw, preference)
        if preference is not None and compare:
            again, row.opposite = repeats.look(preference, raw.number)
            found += again
        for finding in (*raw.findings, *found):
            row.note(path, finding, problems)
        problems.cut_short |= raw.ends
        yield row
    if raw is None:
        what = "the file is empty" if not _has_text(path) else "no pairs in the file"
        raise DataError(f"{path}: {what}; it needs at least one preference pair")


def read_preferences(path: str | Path) -> list[Preference]:
    """All pairs of a file whose every row can be read, in memory.

    Raises:
        UsageError: If there is no such file.
        DataError: If there is a row that can't; the message begins with the place of the first.
    """
    problems = Problems()
    rows = list(read_rows(path, problems, compare=False))
    refuse_errors(problems, len(rows))
    return [row.preference for row in rows if row.preference is not None]


def refuse_errors(problems: Problems, read: int, hint: str = "") -> None:
    """Refuse files that have errors, in one line that names the first.

    Raises:
        DataError: If there is one.
    """
    count = problems.num_errors
    if count:
        first = problems.shown()[0]
        text = str(first) if count == 1 else f"{first} (the first of {count} errors in {read} rows)"
        raise DataError(text + hint)


def read_some(path: str | Path, numbers: Iterable[int]) -> dict[int, Preference]:
    """The preferences of a few rows, by number; other rows are not looked at.

    Rows that are not usable are missing from the result.
    """
    wanted, found = set(numbers), {}
    for raw in raw_rows(Path(path)):
        if raw.number in wanted:
            preference = read_preference(raw.value, raw.number, set(KEYS), [])
            if preference is not None:
                found[raw.number] = preference
            wanted.remove(raw.number)
        if not wanted:
            break
    return found


def _has_text(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(file.read(4096).removeprefix(b"\xef\xbb\xbf").strip())


# --- What only shows across rows: ids and pairs that come twice, and rows
# that contradict others.
#
# Rows are remembered by digests of 16 bytes, so that a hundred thousand of them stay small.


def text_digest(*texts: tuple[Message, ...]) -> bytes:
    """16 bytes that stand for some lists of messages."""
    return blake2b(json.dumps(texts).encode(), digest_size=16).digest()


class Repeats:
    """Remembers rows, and tells of those that were there before."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._pairs: dict[bytes, int] = {}

    def look(self, preference: Preference, number: int) -> tuple[list[Finding], int | None]:
        """Compare a row with those before it, and remember it.

        Args:
            preference: The row.
            number: Its number in the file.

        Returns:
            What is wrong with it, and the number of an earlier row that prefers the other way.
        """
        found = []
        same_id = self._ids.setdefault(preference.id, number)
        if same_id != number:
            reason = f"id {preference.id!r:.60} is that of row {same_id} too"
            found.append(Finding("duplicate-id", "id", reason, "give each row an id, or none"))
        prompt, chosen, rejected = preference.prompt, preference.chosen, preference.rejected
        opposite = None
        if chosen != rejected:
            opposite = self._pairs.get(text_digest(prompt, rejected, chosen))
        if opposite is not None:
            reason = f"row {opposite} prefers the other way round"
            found.append(Finding("contradiction", "chosen", reason, "decide, and remove one"))
        same_pair = self._pairs.setdefault(text_digest(prompt, chosen, rejected), number)
        if same_pair != number:
            reason = f"the same pair as row {same_pair}; it counts twice"
            found.append(Finding("duplicate-pair", 0, reason, "remove one unless that is meant"))
        return found, opposite


# --- Preferences as the lines that the reader reads.


def preference_line(preference: Preference, *, keep_id: bool = True) -> str:
    """A pair as a line of JSON, with its line break.

    Args:
        preference: The pair.
        keep_id: Whether its id is written. Without one, a row's id is its place in the file.
    """
    row: dict[str, Any] = {"id": preference.id} if keep_id else {}
    if preference.kind:
        row["kind"] = preference.kind
    row["prompt"] = plain(preference.prompt, "user")
    row["chosen"] = plain(preference.chosen, "assistant")
    row["rejected"] = plain(preference.rejected, "assistant")
    return json_line(row)


def plain(turns: Sequence[Message], role: str) -> str | list[dict[str, str]]:
    """Turns as they stand in a file: a single one of the usual role is plain text."""
    if len(turns) == 1 and turns[0].role == role:
        return turns[0].content
    return [turn._asdict() for turn in turns]


def json_line(row: dict[str, Any]) -> str:
    """An object as one line; keys keep their order, so equal rows have equal bytes.

    Characters that some tools take for line breaks are escaped.
    """
    text = json.dumps(row, ensure_ascii=False)
    for character in "\x85\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text + "\n"
