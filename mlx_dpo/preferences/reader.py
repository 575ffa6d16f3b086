"""Preference rows from a file: every row checked, every problem of the file found in one pass."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.documents import RawRow, has_bom, raw_rows
from mlx_dpo.preferences.problems import ERROR, LEVELS, WARNING, Problem, Problems
from mlx_dpo.preferences.repeats import Repeats
from mlx_dpo.preferences.strict_json import Finding
from mlx_dpo.records import Message, Preference

KEYS = ("prompt", "user", "chosen", "rejected", "kind", "id")
LONGEST_NAME = 1000  # characters of an id or a kind, which are remembered for every row
STRANGE_KEYS = 20  # told of in one row
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_JSON_NAMES = {
    **{"str": "text", "int": "a number", "float": "a number", "bool": "true or false"},
    **{"NoneType": "null", "list": "a list", "dict": "an object"},
}


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


def read_preference(
    row: Any, number: int, known: set[str], found: list[Finding]
) -> Preference | None:
    """A row as a preference.

    Args:
        row: What the JSON says.
        number: Its number, which is its id where it has none.
        known: Keys that are not told of; those that are get added.
        found: Told of all that is wrong with it.

    Returns:
        None where it is not usable.
    """
    if not isinstance(row, dict):
        found.append(Finding("not-object", 0, f"expected an object, found {_name(row)}"))
        return None
    _check_keys(row, known, found)
    chosen = read_messages(row, "chosen", "assistant", found)
    rejected = read_messages(row, "rejected", "assistant", found)
    prompt_key = "user" if "user" in row else "prompt"
    prompt: tuple[Message, ...] | None
    if prompt_key in row:
        prompt = read_messages(row, prompt_key, "user", found)
    else:
        prompt, chosen, rejected = _split_shared_turns(row, chosen, rejected, found)
    kind = _label(row.get("kind", ""), "kind", found)
    own_id = row.get("id", number)
    is_number = isinstance(own_id, int) and not isinstance(own_id, bool)
    name = _label(str(own_id) if is_number else own_id, "id", found)
    if prompt is None or chosen is None or rejected is None or kind is None or name is None:
        return None
    for key, turns in ((prompt_key, prompt), ("chosen", chosen), ("rejected", rejected)):
        _check_words(key, turns, found)
    if chosen == rejected:
        found.append(Finding("equal", "rejected", "chosen equals rejected"))
    return Preference(prompt, chosen, rejected, kind, name)


def _check_keys(row: dict[str, Any], known: set[str], found: list[Finding]) -> None:
    strange = [key for key in row if key not in known]
    short = [key for key in strange[:100] if len(key) < 20]
    for key in ("chosen", "rejected"):
        if key not in row:
            near = difflib.get_close_matches(key, short, n=1)
            hint = (
                f"did you mean it by {near[0]!r}?" if near else f"found {sorted(row)[:10]!s:.200}"
            )
            found.append(Finding("missing-key", 0, f"key {key!r} is missing", hint))
    if "prompt" in row and "user" in row:
        found.append(Finding("duplicate-key", "user", "has both 'prompt' and 'user'", "keep one"))
    for key in strange[:STRANGE_KEYS]:
        known.add(key)
        found.append(
            Finding(
                "unknown-key",
                key,
                f"{key!r:.60} is no key of a pair, and is not used, here and in later rows",
                f"known: {', '.join(KEYS)}",
            )
        )


def read_messages(
    row: dict[str, Any], key: str, role: str, found: list[Finding]
) -> tuple[Message, ...] | None:
    """The turns under a key of a row; plain text becomes one turn.

    Args:
        row: The row.
        key: Where they stand.
        role: Whose turn a plain text is.
        found: Told of what is wrong with them.

    Returns:
        None where they can't be read, or there is no such key (which is not told).
    """
    if key not in row:
        return None  # noted with the keys
    value = row[key]
    if isinstance(value, str):
        text = read_text(value, key, found)
        return None if text is None else (Message(role, text),)
    if not isinstance(value, list) or not value:
        _wrong_type(key, f"must be text or a list of messages, found {_name(value)}", found)
        return None
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
            _wrong_type(key, "holds a message without 'role' or 'content'", found)
            return None
        who, what = read_text(turn["role"], key, found), read_text(turn["content"], key, found)
        if who is None or what is None:
            return None
        turns.append(Message(who, what))
    return tuple(turns)


def read_text(value: Any, key: str, found: list[Finding]) -> str | None:
    """A value of a row that must be text, or None; `found` is told of what is wrong with it."""
    if not isinstance(value, str):
        _wrong_type(key, f"must be text, found {_name(value)}", found)
        return None
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            reason = f"{key!r} holds half of a surrogate pair"
            hint = "the text was cut in the middle of a character; write it whole"
            found.append(Finding("lone-surrogate", key, reason, hint))
            return None
    control = _CONTROL.search(value)
    if control:
        reason = f"{key!r} holds the control character U+{ord(control[0]):04X}"
        found.append(Finding("control-character", key, reason, "look whether it belongs there"))
    return value


def _label(value: Any, key: str, found: list[Finding]) -> str | None:
    text = read_text(value, key, found)
    if text is not None and len(text) > LONGEST_NAME:
        _wrong_type(key, f"has {len(text)} characters, more than {LONGEST_NAME}", found)
        return None
    return text


def _check_words(key: str, turns: tuple[Message, ...], found: list[Finding]) -> None:
    text = "".join(turn.content for turn in turns)
    hint = "the model learns from it as it is; remove the row unless that is meant"
    if not text:
        found.append(Finding("empty", key, f"{key!r} is empty", hint))
    elif text.isspace():
        found.append(Finding("whitespace-only", key, f"{key!r} is nothing but white space", hint))


def _split_shared_turns(
    row: dict[str, Any],
    chosen: tuple[Message, ...] | None,
    rejected: tuple[Message, ...] | None,
    found: list[Finding],
) -> tuple[tuple[Message, ...] | None, tuple[Message, ...] | None, tuple[Message, ...] | None]:
    """Prompt = the turns both dialogues begin with. Whole turns, never a part of one."""
    shared = 0
    if chosen is not None and rejected is not None:
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
    if shared and chosen is not None and rejected is not None:
        return chosen[:shared], chosen[shared:], rejected[shared:]
    # Lists that can't be read may well share turns: what is wrong with them has been noted.
    could_share = all(isinstance(row.get(key), list) for key in ("chosen", "rejected"))
    if not could_share or (chosen is not None and rejected is not None):
        found.append(Finding("missing-key", 0, "key 'prompt' (or 'user') is missing"))
    return None, None, None


def _wrong_type(key: str, reason: str, found: list[Finding]) -> None:
    found.append(Finding("wrong-type", key, f"{key!r} {reason}"))


def _name(value: Any) -> str:
    return _JSON_NAMES[type(value).__name__]
