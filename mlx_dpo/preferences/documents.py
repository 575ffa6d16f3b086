"""The rows of a JSON-lines file or a JSON array as they stand in it, each with its place.

JSON lines are read line by line, never the whole file. An array is one document: its text is held
in memory, and what breaks it ends the reading.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlx_dpo.errors import UsageError

MAX_ROW = 10_000_000  # bytes of a line, characters of a row in an array; no pair is near it
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")


class Finding(NamedTuple):
    """Something wrong with a row, before its place in the file is worked out.

    Attributes:
        code: A key of `problems.LEVELS`.
        at: A key of the row, or an offset into its source.
        reason: What is wrong.
        hint: What to do about it.
    """

    code: str
    at: str | int
    reason: str
    hint: str = ""


@dataclass(slots=True)
class RawRow:
    """One row as it stands in the file.

    Attributes:
        number: Counted from 1; blank lines don't count.
        line: Where it begins, counted from 1.
        column: The same in characters.
        share: How much of the file has been read with it, 0 to 1.
        source: Its text.
        value: What the JSON says; None where it can't be read.
        findings: What is wrong with it as JSON.
        ends: Whether the rest of the file could not be read.
    """

    number: int
    line: int
    column: int
    share: float
    source: str = ""
    value: Any = None
    findings: list[Finding] = field(default_factory=list)
    ends: bool = False

    def place(self, at: str | int) -> tuple[int, int]:
        """Line and column of an offset or a key; of the row where it holds no such key."""
        offset = at if isinstance(at, int) else max(0, self.source.find(json.dumps(at)))
        lines = self.source.count("\n", 0, offset)
        if lines == 0:
            return self.line, self.column + offset
        return self.line + lines, offset - self.source.rfind("\n", 0, offset)


def raw_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a file; whether it is an array or JSON lines is read off its first character.

    Raises:
        UsageError: If it is not there or can't be read.
    """
    try:
        with path.open("rb") as file:
            begin = len(_BOM) if _has_bom(file) else 0
            file.seek(begin)
            is_array = _begins_array(file)
            file.seek(begin)
            yield from _array_rows(file.read()) if is_array else _json_lines(file)
    except OSError as error:
        raise not_readable(path, error) from None


def check_readable(path: Path) -> None:
    """Find out now whether a file can be read later.

    Raises:
        UsageError: If it can't.
    """
    has_bom(path)


def has_bom(path: Path) -> bool:
    """Whether a file begins with a byte order mark."""
    try:
        with path.open("rb") as file:
            return _has_bom(file)
    except OSError as error:
        raise not_readable(path, error) from None


def not_readable(path: Path, error: OSError) -> UsageError:
    """The same sentence wherever a preference file can't be opened."""
    reasons = {FileNotFoundError: "no such file", IsADirectoryError: "is a folder"}
    reason = reasons.get(type(error), f"not readable: {error.strerror}")
    return UsageError(f"{path}: {reason}; pairs are a .json or .jsonl file")


def _has_bom(file: BinaryIO) -> bool:
    return file.read(len(_BOM)) == _BOM


def _begins_array(file: BinaryIO) -> bool:
    while block := file.read(4096):
        if text := block.strip():
            return text.startswith(b"[")
    return False


def _json_lines(file: BinaryIO) -> Iterator[RawRow]:
    size = max(1, os.fstat(file.fileno()).st_size)
    line = number = 0
    while data := file.readline(MAX_ROW + 1):
        line += 1
        if len(data) <= MAX_ROW and not data.strip():
            continue
        number += 1
        too_long = len(data) > MAX_ROW
        while too_long and data and not data.endswith(b"\n"):
            data = file.readline(MAX_ROW)
        row = RawRow(number, line, 1, min(1.0, file.tell() / size))
        if too_long:
            row.findings.append(_too_long())
        else:
            _parse_line(row, data)
        yield row


def _parse_line(row: RawRow, data: bytes) -> None:
    try:
        row.source = data.decode()
    except UnicodeDecodeError as error:
        row.source = data[: error.start].decode()
        row.findings.append(_bad_utf8(data[error.start], len(row.source)))
        return
    decoder = _Decoder(row.findings)
    try:
        row.value = decoder.decode(row.source)
    except (ValueError, RecursionError) as error:
        row.findings[:] = [_bad_json(error, 0)]


def _array_rows(data: bytes) -> Iterator[RawRow]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        source = data[: error.start].decode()
        found = _bad_utf8(data[error.start], len(source))
        yield RawRow(1, 1, 1, 1.0, source, findings=[found], ends=True)
        return
    at, number, line, counted = _skip_space(text, text.index("[") + 1), 0, 1, 0
    more = text[at : at + 1] != "]"
    while more:
        number += 1
        line, counted = line + text.count("\n", counted, at), at
        column = at - text.rfind("\n", 0, at)
        row = RawRow(number, line, column, at / len(text))
        at = _parse_array_row(row, text, at)
        yield row
        if row.ends:
            return
        more = text[at] == ","
        at = _skip_space(text, at + 1) if more else at
    # `at` is on the closing bracket; nothing may follow it.
    rest = _skip_space(text, at + 1)
    if rest < len(text):
        line += text.count("\n", counted, rest)
        found = Finding("bad-json", 0, "not JSON: there is text after the array's end", _ARRAY_ENDS)
        column = rest - text.rfind("\n", 0, rest)
        yield RawRow(number + 1, line, column, 1.0, findings=[found], ends=True)


def _parse_array_row(row: RawRow, text: str, start: int) -> int:
    """Read the row at `start`; returns where the comma or bracket after it stands."""
    try:
        row.value, end = _Decoder(row.findings).raw_decode(text, start)
        row.source = text[start:end]
        after = _skip_space(text, end)
        if text[after : after + 1] not in (",", "]"):
            raise json.JSONDecodeError("Expecting ',' or ']' after a row", text, after)
    except (ValueError, RecursionError) as error:
        found = _bad_json(error, start)
        assert isinstance(found.at, int)
        row.source = text[start : start + found.at + 1]
        row.findings[:] = [found._replace(hint=_ARRAY_ENDS)]
        row.value, row.ends = None, True
        return start
    if end - start > MAX_ROW:
        row.findings.append(_too_long())
    return after


def _skip_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


_ARRAY_ENDS = "the rest of the array was not read; mend this first"


def _bad_utf8(byte: int, at: int) -> Finding:
    return Finding("bad-utf8", at, f"byte 0x{byte:02x} is not UTF-8", "save the file as UTF-8")


def _bad_json(error: ValueError | RecursionError, start: int) -> Finding:
    hint = "a file is one JSON object a line, or a JSON array of objects"
    if isinstance(error, json.JSONDecodeError):
        return Finding("bad-json", error.pos - start, f"not JSON: {error.msg}", hint)
    # Python's other refusal: it reads no whole number beyond 4300 digits.
    nested = isinstance(error, RecursionError)
    reason = "nested too deeply" if nested else "a number has too many digits"
    return Finding("bad-json", 0, f"not usable JSON: {reason}", hint)


def _too_long() -> Finding:
    return Finding(
        "line-too-long",
        0,
        f"the row is longer than {MAX_ROW // 1_000_000} MB",
        "look for missing line breaks between rows",
    )


class _Decoder(json.JSONDecoder):
    """Python's decoder, which by itself lets repeated keys and NaN pass without a word."""

    def __init__(self, findings: list[Finding]) -> None:
        self._findings = findings
        super().__init__(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            key = next(key for key in keys if keys.count(key) > 1)
            self._findings.append(
                Finding("duplicate-key", key, f"key {key!r:.60} comes twice", "keep one")
            )
        return found

    def _constant(self, name: str) -> float:
        self._findings.append(
            Finding("nan", 0, f"{name} is not a value JSON knows", "give a number, or null")
        )
        return float(name.replace("Infinity", "inf"))
