"""One row of a preference file: its keys, what they must hold, and what can be wrong with them.

Each problem has a code, a place, a reason and a hint. All problems of a file are found in one pass:
a few are kept to be shown, all are counted and, where there is a log, written to it.
"""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from typing import IO, Any, NamedTuple, TextIO

from mlx_dpo.errors import writing
from mlx_dpo.preferences.context import beyond_text, outside_prompt, second_turn
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
    "open-block": WARNING,
    "other-words": WARNING,
    "template-words": WARNING,
    "answer-changed": WARNING,
    "empty": WARNING,
    "whitespace-only": WARNING,
    "bom": WARNING,
    "unknown-key": WARNING,
    "control-character": WARNING,
    "duplicate-pair": WARNING,
    "large-array": WARNING,
    "unsupported": LEFT_OUT,
    "prompt-changed": WARNING,
}
CODES = tuple(LEVELS)
SHOWN = 20  # problems kept to be shown, of each level
FIRST = 5  # of each code

KEYS = ("prompt", "user", "chosen", "rejected", "kind", "id")
LONGEST_NAME = 1000  # characters of an id or a kind, which are remembered for every row
UNKNOWN_KEYS = 20  # reported in one row
_CALLS = ("tool_calls", "function_call")  # of messages, which hold them beside their text
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_JSON_NAMES: dict[type, str] = {
    **{str: "text", int: "a number", float: "a number", bool: "true or false"},
    **{type(None): "null", list: "a list", dict: "an object"},
}


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
        self._of_code: dict[str, list[Problem]] = {}

    def add(self, problem: Problem) -> None:
        """Count a problem, keep it if it is among the first, and log it.

        Raises:
            DiskError: If the log can't be written.
        """
        self.counts[problem.code] += 1
        first = self._first[problem.level]
        if len(first) < SHOWN:
            first.append(problem)
        of_code = self._of_code.setdefault(problem.code, [])
        if len(of_code) < FIRST:
            of_code.append(problem)
        if self._log is not None:
            line = {**problem._asdict(), "level": problem.level}
            name = getattr(self._log, "name", 0)  # a number where it has none on the disk
            with writing(name if isinstance(name, str) else "a temporary file"):
                self._log.write(json.dumps(line) + "\n")

    def add_log(self, lines: Iterable[bytes], file: str) -> None:
        """Add the problems that were logged before.

        Args:
            lines: Lines of a log.
            file: The present name of the preference file.

        Raises:
            ValueError: If it is not such a log.
        """
        for line in lines:
            self.add(_read_problem(line)._replace(file=file))

    @property
    def errors(self) -> Counter[str]:
        """Problems for which a file is refused, by code."""
        return Counter({code: n for code, n in self.counts.items() if LEVELS[code] == ERROR})

    @property
    def num_errors(self) -> int:
        """Problems for which a file is refused."""
        return self.errors.total()

    def of_each_code(self) -> list[tuple[int, list[Problem]]]:
        """How many problems there are of each code, and the first five; errors first."""
        levels = list(self._first)
        codes = sorted(self._of_code, key=lambda code: levels.index(LEVELS[code]))
        return [(self.counts[code], self._of_code[code]) for code in codes]

    def shown(self) -> list[Problem]:
        """The first twenty: errors, then rows left out, then warnings."""
        return [problem for first in self._first.values() for problem in first][:SHOWN]


def mapped(log: IO[bytes]) -> mmap | None:
    """A log, memory-mapped: readable when the file is closed or deleted; None if empty."""
    has_lines = log.seek(0, 2)
    return mmap(log.fileno(), 0, access=ACCESS_READ) if has_lines else None


def _read_problem(line: bytes) -> Problem:
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


def read_preference(
    row: Any, number: int, known: set[str], findings: list[Finding]
) -> Preference | None:
    """A row as a preference.

    Args:
        row: The decoded JSON.
        number: Its number, which is its id where it has none.
        known: Keys that are no finding; an unknown key is added once it was one.
        findings: Gets all that is wrong with the row.

    Returns:
        None where it is not usable.
    """
    if not isinstance(row, dict):
        findings.append(Finding("not-object", 0, f"expected an object, found {_name(row)}"))
        return None
    _check_keys(row, known, findings)
    chosen = read_messages(row, "chosen", "assistant", findings, known)
    rejected = read_messages(row, "rejected", "assistant", findings, known)
    prompt_key = "user" if "user" in row else "prompt"
    prompt: tuple[Message, ...] | None
    if prompt_key in row:
        prompt = read_messages(row, prompt_key, "user", findings, known)
    else:
        prompt, chosen, rejected = _split_shared_turns(row, chosen, rejected, findings)
    kind = _label("" if row.get("kind") is None else row["kind"], "kind", findings)
    own_id = number if row.get("id") is None else row["id"]
    is_number = not isinstance(own_id, bool) and isinstance(own_id, (int, float))
    is_whole = is_number and own_id % 1 == 0  # 1.0 is what tables make of 1
    name = _label(str(int(own_id)) if is_whole else own_id, "id", findings)
    if prompt is None or chosen is None or rejected is None or kind is None or name is None:
        return None
    for key, turns in ((prompt_key, prompt), ("chosen", chosen), ("rejected", rejected)):
        _check_words(key, turns, findings)
    if chosen == rejected:
        findings.append(Finding("equal", "rejected", "chosen equals rejected"))
    if again := second_turn(prompt, chosen, rejected):
        findings.append(again)
    if any(finding.code == "unsupported" for finding in findings):
        return None
    return Preference(prompt, chosen, rejected, kind, name)


def _check_keys(row: dict[str, Any], known: set[str], findings: list[Finding]) -> None:
    outside = outside_prompt(row)
    findings += outside
    unknown = [key for key in row if key not in known and key not in {f.at for f in outside}]
    short = [key for key in unknown[:100] if len(key) < 20]
    for key in ("chosen", "rejected"):
        if key not in row:
            near = difflib.get_close_matches(key, short, n=1)
            hint = (
                f"did you mean it by {near[0]!r}?" if near else f"found {sorted(row)[:10]!s:.200}"
            )
            findings.append(Finding("missing-key", 0, f"key {key!r} is missing", hint))
    if "prompt" in row and "user" in row:
        reason = "has both 'prompt' and 'user'"
        findings.append(Finding("duplicate-key", "user", reason, "keep one"))
    for key in unknown[:UNKNOWN_KEYS]:
        known.add(key)
        reason = f"{key!r:.60} is not a key of a pair; it is not used, here or in later rows"
        findings.append(Finding("unknown-key", key, reason, f"known: {', '.join(KEYS)}"))
    if more := unknown[UNKNOWN_KEYS:]:
        reason = f"{len(more)} more keys of the row are not used, {more[0]!r:.60} first"
        findings.append(Finding("unknown-key", more[0], reason, f"known: {', '.join(KEYS)}"))


def read_messages(
    row: dict[str, Any],
    key: str,
    role: str,
    findings: list[Finding],
    known: set[str] | None = None,
) -> tuple[Message, ...] | None:
    """The turns under a key of a row; plain text becomes one turn.

    Args:
        row: The row.
        key: Key of the turns.
        role: Role of a plain text.
        findings: Gets what is wrong with them.
        known: Keys that are no finding, those of a turn as ``chosen.name``; a key of a turn that
            nobody reads is added once it was one. None reports none.

    Returns:
        None where they can't be read, or there is no such key (which is no finding here).
    """
    if key not in row:
        return None  # a finding of `_check_keys`
    value = row[key]
    if isinstance(value, str):
        text = read_text(value, key, findings)
        return None if text is None else (Message(role, text),)
    if not isinstance(value, list) or not value:
        _wrong_type(key, f"must be text or a list of messages, found {_name(value)}", findings)
        return None
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not {"role", "content"} <= set(turn):
            _wrong_type(key, "holds a message without 'role' or 'content'", findings)
            return None
        if call := next((name for name in _CALLS if turn.get(name)), None):
            _wrong_type(key, f"holds a message with {call!r}; pairs are of plain text", findings)
            return None
        if beyond := beyond_text(turn):
            reason = f"{key!r} holds a message that {beyond[0].reason}"
            findings.append(beyond[0]._replace(at=key, reason=reason))
            return None
        if known is not None:
            _check_turn_keys(turn, key, known, findings)
        texts = [read_text(turn[name], key, findings) for name in Message._fields]
        if texts[0] is None or texts[1] is None:
            return None
        turns.append(Message(texts[0], texts[1]))
    return tuple(turns)


def _check_turn_keys(
    turn: dict[str, Any], key: str, known: set[str], findings: list[Finding]
) -> None:
    if len(turn) == len(Message._fields):
        return
    unread = [name for name, value in turn.items() if value and name not in Message._fields]
    for name in unread[:UNKNOWN_KEYS]:
        if f"{key}.{name}" not in known:
            known.add(f"{key}.{name}")
            reason = f"{name!r:.60} of a message of {key!r} is not used, here and in later rows"
            findings.append(Finding("unknown-key", key, reason, "known: role, content"))


def read_text(value: Any, key: str, findings: list[Finding]) -> str | None:
    """A value of a row that must be text; None, with a finding, where it can't be used."""
    if not isinstance(value, str):
        _wrong_type(key, f"must be text, found {_name(value)}", findings)
        return None
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            reason = f"{key!r} holds half of a surrogate pair"
            hint = "the text was cut in the middle of a character; write it whole"
            findings.append(Finding("lone-surrogate", key, reason, hint))
            return None
    control = _CONTROL.search(value)
    if control:
        reason = f"{key!r} holds the control character U+{ord(control[0]):04X}"
        findings.append(Finding("control-character", key, reason, "look whether it belongs there"))
    return value


def _label(value: Any, key: str, findings: list[Finding]) -> str | None:
    text = read_text(value, key, findings)
    if text is not None and len(text) > LONGEST_NAME:
        _wrong_type(key, f"has {len(text)} characters, more than {LONGEST_NAME}", findings)
        return None
    return text


def _check_words(key: str, turns: tuple[Message, ...], findings: list[Finding]) -> None:
    text = "".join(turn.content for turn in turns)
    hint = "the model learns from it as it is; remove the row unless that is meant"
    if not text:
        findings.append(Finding("empty", key, f"{key!r} is empty", hint))
    elif text.isspace():
        findings.append(
            Finding("whitespace-only", key, f"{key!r} is nothing but white space", hint)
        )


def _split_shared_turns(
    row: dict[str, Any],
    chosen: tuple[Message, ...] | None,
    rejected: tuple[Message, ...] | None,
    findings: list[Finding],
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
        findings.append(Finding("missing-key", 0, "key 'prompt' (or 'user') is missing"))
    return None, None, None


def _wrong_type(key: str, reason: str, findings: list[Finding]) -> None:
    findings.append(Finding("wrong-type", key, f"{key!r} {reason}"))


def _name(value: Any) -> str:
    # Cells of a Parquet file may be dates, decimals or bytes, which JSON does not have.
    return _JSON_NAMES.get(type(value), f"a value of type {type(value).__name__}")
