"""Preference rows from a file and back: each row checked, alone and against those before it.

Every problem of a file is found in one pass.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.json_text import Finding, RawRow, file_findings, raw_rows
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
class CheckedRow:
    """One row of a preference file.

    Attributes:
        raw: The row as it stands in the file.
        preference: The pair; None where the row is not usable.
        code: Why it is left out (the first such problem); None where it is kept.
        opposite: Number of an earlier row that prefers the other way round.
    """

    raw: RawRow
    preference: Preference | None = None
    code: str | None = None
    opposite: int | None = None

    def note(self, file: Path, finding: Finding, problems: Problems) -> None:
        """Report a finding with its place, and remember whether the row is left out for it."""
        place = (str(file), *self.raw.place(finding), self.raw.number)
        problems.add(Problem(*place, finding.code, finding.reason, finding.hint))
        if self.code is None and LEVELS[finding.code] != WARNING:
            self.code = finding.code


def read_rows(
    path: str | Path, problems: Problems, *, compare: bool = True
) -> Iterator[CheckedRow]:
    """Every row of a file, good or not, one at a time.

    A row is an object with ``prompt`` (or ``user``), ``chosen``, ``rejected`` and optionally
    ``kind`` and ``id``. Texts are plain strings without markers, or lists of
    ``{"role": ..., "content": ...}`` messages. Without ``prompt``, message lists that begin with
    the same turns share those as their prompt.

    Args:
        path: A JSON array or JSON lines; which of the two it is, is read off its first character.
        problems: Gets everything that is wrong.
        compare: Whether rows are compared with each other too.

    Yields:
        The rows in the order of the file.

    Raises:
        UsageError: If there is no such file.
        DataError: If it holds no row at all.
    """
    path = Path(path)
    for code, _, reason, hint in file_findings(path):
        problems.add(Problem(str(path), 1, 1, 0, code, reason, hint))
    repeats = Repeats()
    known = set(KEYS)  # an unknown key is reported once, and not for each of its rows
    raw = None
    for raw in raw_rows(path):
        preference, findings = _read(raw, known)
        row = CheckedRow(raw, preference)
        if preference is not None and compare:
            again, row.opposite = repeats.look(preference, raw.number)
            findings += again
        for finding in findings:
            row.note(path, finding, problems)
        problems.cut_short |= raw.ends
        yield row
    if raw is None:
        what = "the file is empty" if not _has_text(path) else "no pairs in the file"
        raise DataError(f"{path}: {what}; it needs at least one preference pair")


def read_preferences(
    path: str | Path,
    problems: Problems | None = None,
    *,
    drop_bad: bool = False,
    compare: bool = True,
) -> list[Preference]:
    """The usable pairs of a file, in memory.

    Args:
        path: As for `read_rows`.
        problems: Gets everything that is wrong.
        drop_bad: Whether rows with errors are left out instead of refused, as in training.
        compare: Whether rows that repeat an id or contradict another have an error.

    Raises:
        UsageError: If there is no such file.
        DataError: If a row has an error and `drop_bad` is off, or a broken array keeps the rest
            from being read; the message begins with the place of the first.
    """
    problems = Problems() if problems is None else problems
    rows = list(read_rows(path, problems, compare=compare))
    if problems.cut_short or not drop_bad:
        refuse_errors(problems, len(rows), drop_bad_hint(problems))
    contradicted = {row.opposite for row in rows}
    return [
        row.preference
        for row in rows
        if row.preference is not None
        and (row.code is None or LEVELS[row.code] != ERROR)
        and row.raw.number not in contradicted
    ]


def read_pair(path: str | Path, number: int) -> Preference:
    """The pair of one row, whatever the others hold.

    Raises:
        UsageError: If there is no such file.
        DataError: If there is no such row, or it is not usable.
    """
    raw = None
    for raw in raw_rows(Path(path)):
        if raw.number == number:
            preference, findings = _read(raw, set(KEYS))
            row, problems = CheckedRow(raw), Problems()
            for finding in findings:
                row.note(Path(path), finding, problems)
            refuse_errors(problems, 1)
            if preference is None:
                raise DataError(str(problems.shown()[0]))
            return preference
    raise DataError(f"{path}: has {raw.number if raw else 0} rows, there is no row {number}")


def read_some(path: str | Path, numbers: Iterable[int]) -> dict[int, Preference]:
    """The preferences of a few rows, by number; other rows are not checked.

    Rows that are not usable are missing from the result.
    """
    wanted, preferences = set(numbers), {}
    for raw in raw_rows(Path(path)):
        if raw.number in wanted:
            preference, _ = _read(raw, set(KEYS))
            if preference is not None:
                preferences[raw.number] = preference
            wanted.remove(raw.number)
        if not wanted:
            break
    return preferences


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


def drop_bad_hint(problems: Problems) -> str:
    """What a command that has ``--drop-bad`` adds to a refusal."""
    if problems.cut_short:
        return ""
    if problems.num_errors == 1:
        return ". --drop-bad leaves the row out"
    return ". See them all: mlx_dpo data check; --drop-bad leaves such rows out"


def _read(raw: RawRow, known: set[str]) -> tuple[Preference | None, list[Finding]]:
    """The pair of a row, None where it has an error, and all that is wrong with it."""
    findings = list(raw.findings)
    preference = None
    if not _has_error(findings):
        preference = read_preference(raw.value, raw.number, known, findings)
    return None if _has_error(findings) else preference, findings


def _has_error(findings: Iterable[Finding]) -> bool:
    return any(LEVELS[finding.code] == ERROR for finding in findings)


def _has_text(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(file.read(4096).removeprefix(b"\xef\xbb\xbf").strip())


def text_digest(*texts: tuple[Message, ...]) -> bytes:
    """16 bytes that stand for some lists of messages."""
    return blake2b(json.dumps(texts).encode(), digest_size=16).digest()


class Repeats:
    """Finds ids and pairs that come twice, and rows that contradict others.

    Rows are remembered by digests of 16 bytes, so that a hundred thousand of them stay small.
    """

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
        findings = []
        same_id = self._ids.setdefault(preference.id, number)
        if same_id != number:
            reason = f"id {preference.id!r:.60} is that of row {same_id} too"
            findings.append(Finding("duplicate-id", "id", reason, "give each row an id, or none"))
        prompt, chosen, rejected = preference.prompt, preference.chosen, preference.rejected
        opposite = None
        if chosen != rejected:
            opposite = self._pairs.get(text_digest(prompt, rejected, chosen))
        if opposite is not None:
            reason = f"row {opposite} prefers the other way round"
            findings.append(Finding("contradiction", "chosen", reason, "decide, and remove one"))
        same_pair = self._pairs.setdefault(text_digest(prompt, chosen, rejected), number)
        if same_pair != number:
            reason = f"the same pair as row {same_pair}; it counts twice"
            findings.append(Finding("duplicate-pair", 0, reason, "remove one unless that is meant"))
        return findings, opposite


def preference_line(preference: Preference) -> str:
    """A pair as a line of JSON, with its line break."""
    row: dict[str, Any] = {"id": preference.id}
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
