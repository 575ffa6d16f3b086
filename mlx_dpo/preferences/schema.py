"""What can be wrong with a preference file: for each problem a code, a place, a reason, a way out.

All problems of a file are found in one pass. A few are kept to be shown, the rest is counted and,
where there is a log, written to it.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from typing import IO, Any, NamedTuple, TextIO

from mlx_dpo.preferences.json_text import Finding
from mlx_dpo.records import Message, Preference

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


# --- The fields of a row: what they must hold, and the preference they
# make.


KEYS = ("prompt", "user", "chosen", "rejected", "kind", "id")
LONGEST_NAME = 1000  # characters of an id or a kind, which are remembered for every row
STRANGE_KEYS = 20  # told of in one row
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_JSON_NAMES = {
    **{"str": "text", "int": "a number", "float": "a number", "bool": "true or false"},
    **{"NoneType": "null", "list": "a list", "dict": "an object"},
}


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
