"""Rows of JSON lines or of a JSON array, as they stand in a file, each with its place.

JSON is read as its standard says: repeated keys and NaN, which Python's decoder accepts silently,
are findings. JSON lines are read line by line. An array is read whole, as one document; what breaks
it ends the reading, because nobody can know where its next row would begin.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.paths import check_encoding

MAX_ROW = 10_000_000  # bytes of a line, characters of a row in an array; no pair is near it
LARGE_ARRAY = 200_000_000  # bytes of a file; a larger array is read too, with a warning
_BOM = b"\xef\xbb\xbf"
# Where a text was cut, the decoder's error lies at most so far before its end: `\\ud83d\\ude42`.
_LONGEST_TOKEN = 16
_ARRAY_ENDS = "the rest of the array was not read; correct this first"
_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\]]|-?Infinity|NaN', re.DOTALL)
_COLON = re.compile(r"[ \t\r\n]*:")
_DEPTH = {"{": 1, "[": 1, "}": -1, "]": -1}


class Finding(NamedTuple):
    """Something wrong with a row, before its place in the file is worked out.

    Attributes:
        code: A key of `schema.LEVELS`.
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
        value: The decoded JSON; None where it can't be read.
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

    def place(self, finding: Finding) -> tuple[int, int]:
        """Line and column of a finding; of the row where it holds no such key."""
        at = finding.at
        if finding.code == "nan":
            at = _offset_of_literal(self.source, str(at))
        elif isinstance(at, str):
            at = offset_of_key(self.source, at, last=finding.code == "duplicate-key")
        return _after(self.source, 0, at, self.line, self.column)


def raw_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a file; whether it is an array or JSON lines is read off its first character.

    Raises:
        UsageError: If it is not there or can't be read.
    """
    try:
        with open_file(path) as file:
            has_bom, is_array = _beginning(file)
            file.seek(len(_BOM) if has_bom else 0)
            yield from _array_rows(file) if is_array else _object_rows(file)
    except OSError as error:
        raise not_readable(path, error) from None


def check_readable(path: Path) -> None:
    """Find out now whether a file can be read later.

    Raises:
        UsageError: If it can't.
    """
    file_findings(path)


def file_findings(path: Path) -> list[Finding]:
    """What is odd about a file as a whole, seen before its rows are read.

    Raises:
        UsageError: If it can't be read.
    """
    findings = []
    try:
        with open_file(path) as file:
            has_bom, is_array = _beginning(file)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise not_readable(path, error) from None
    if has_bom:
        reason = "the file begins with a byte order mark"
        findings.append(Finding("bom", 0, reason, "save the file as UTF-8 without it"))
    if is_array and size > LARGE_ARRAY:
        reason = f"an array of {size / 1e6:.0f} MB is read into memory as a whole"
        hint = "write JSON lines, one object a line: those are read row by row"
        findings.append(Finding("large-array", 0, reason, hint))
    return findings


def open_file(path: Path) -> BufferedReader:
    """Open a preference file, which is read more than once: no pipe, and no device.

    Raises:
        OSError: If it can't be opened.
        UsageError: If it is no ordinary file.
        DataError: If it is in UTF-16 or UTF-32.
    """
    try:
        mode = path.stat().st_mode
    except ValueError:  # a name with a zero byte
        raise UsageError(f"{path}: not the name of a file") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"{path}: is a pipe or device; pairs are a .json or .jsonl file")
    check_encoding(path, path, DataError)
    return path.open("rb")


def not_readable(path: Path, error: OSError) -> UsageError:
    """The error to raise where a preference file can't be opened or read."""
    reasons = {FileNotFoundError: "no such file", IsADirectoryError: "is a folder"}
    reason = reasons.get(type(error), f"not readable: {error.strerror}")
    if isinstance(error, FileNotFoundError) and path.suffix in (".json", ".jsonl", ".txt"):
        return UsageError(f"{path}: {reason}; check the name and the folder")
    return UsageError(f"{path}: {reason}; pairs are a .json or .jsonl file")


class _StrictDecoder(json.JSONDecoder):
    """Python's decoder, which alone accepts repeated keys and NaN: here they are findings."""

    def __init__(self, findings: list[Finding]) -> None:
        self._findings = findings
        super().__init__(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        twice = None
        for key, value in pairs:
            if twice is None and key in values:
                twice = key
            values[key] = value
        if twice is not None:
            reason = f"key {twice!r:.60} comes twice"
            self._findings.append(Finding("duplicate-key", twice, reason, "keep one"))
        return values

    def _constant(self, name: str) -> float:
        reason = f"{name} is not a value JSON knows"
        self._findings.append(Finding("nan", name, reason, "give a number, or null"))
        return float(name.replace("Infinity", "inf"))


def _bad_json(error: ValueError | RecursionError) -> Finding:
    """What a decoder's refusal means; `at` is where it stopped."""
    hint = "a file is one JSON object a line, or a JSON array of objects"
    if isinstance(error, json.JSONDecodeError):
        return Finding("bad-json", error.pos, f"not JSON: {error.msg}", hint)
    # Python's other refusal: it reads no whole number beyond 4300 digits.
    nested = isinstance(error, RecursionError)
    reason = "nested too deeply" if nested else "a number has too many digits"
    return Finding("bad-json", 0, f"not usable JSON: {reason}", hint)


def offset_of_key(source: str, key: str, *, last: bool = False) -> int:
    """Where a key of an object stands: the key itself, and never a text that looks alike.

    Args:
        source: The object.
        key: A key of it; of an object inside it where it has none of that name.
        last: Whether to go to the last one of that name.

    Returns:
        The offset of its quotation mark; 0 where there is no such key.
    """
    depth, inner, outer = 0, 0, -1
    for token in _TOKEN.finditer(source):
        text = token[0]
        depth += _DEPTH.get(text, 0)
        if text[0] != '"' or not _COLON.match(source, token.end()) or not _same(text, key):
            continue
        if depth == 1:
            outer = token.start()
            if not last:
                break
        elif last or not inner:
            inner = token.start()
    return outer if outer >= 0 else inner


def _offset_of_literal(source: str, name: str) -> int:
    """Where NaN, Infinity or -Infinity stands outside of texts; 0 where it doesn't."""
    return next((token.start() for token in _TOKEN.finditer(source) if token[0] == name), 0)


def _same(quoted: str, key: str) -> bool:
    # A key may be written with escapes: "cho\u0073en".
    return quoted[1:-1] == key or ("\\" in quoted and json.loads(quoted) == key)


def _beginning(file: BinaryIO) -> tuple[bool, bool]:
    """Whether a file begins with a byte order mark, and whether an array follows."""
    has_bom = file.read(len(_BOM)) == _BOM
    if not has_bom:
        file.seek(0)
    while block := file.read(4096):
        if text := block.strip():
            return has_bom, text.startswith(b"[")
    return has_bom, False


def _object_rows(file: BinaryIO) -> Iterator[RawRow]:
    """JSON lines; or objects of several lines each, as pretty-printed files have them."""
    start = file.tell()
    lines = _json_lines(file)
    first = next(lines, None)
    if first is None:
        return
    if first.source.lstrip().startswith("{") and first.value is None:
        after = file.tell()
        file.seek(start)
        if spread := _spread_rows(file):
            yield from spread
            return
        file.seek(after)
    yield first
    yield from lines


def _spread_rows(file: BinaryIO) -> list[RawRow]:
    """The objects of a file, whatever lines they take; none where one of them is broken."""
    if os.fstat(file.fileno()).st_size > LARGE_ARRAY:
        return []
    rows: list[RawRow] = []
    passed, line, column = 0, 1, 1
    try:
        text = file.read().decode()
        at = _skip_space(text, 0)
        while at < len(text):
            line, column = _after(text, passed, at, line, column)
            row = RawRow(len(rows) + 1, line, column, 1.0)
            row.value, end = _StrictDecoder(row.findings).raw_decode(text, at)
            row.source, row.share = text[at:end], end / len(text)
            rows.append(row)
            passed, at = at, _skip_space(text, end)
    except (ValueError, RecursionError):
        return []
    return rows


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
    try:
        row.value = _StrictDecoder(row.findings).decode(row.source)
    except (ValueError, RecursionError) as error:
        row.findings[:] = [_bad_json(error)]


def _array_rows(file: BinaryIO) -> Iterator[RawRow]:
    data = file.read()
    bad_byte = None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        text, bad_byte = data[: error.start].decode(), data[error.start]
    del data
    line, column, passed, number = 1, 1, 0, 1
    at = _skip_space(text, _skip_space(text, 0) + 1)  # behind the bracket that opens the array
    more = text[at : at + 1] != "]"
    while more:
        line, column = _after(text, passed, at, line, column)
        passed = at
        row = RawRow(number, line, column, 1.0)
        end = _read_element(row, text, at, bad_byte)
        row.share = end / len(text)
        yield row
        if row.ends:
            return
        number += 1
        at = _skip_space(text, end)
        more = text[at] == ","
        if more:
            at = _skip_space(text, at + 1)
    at = _skip_space(text, at + 1)  # behind the bracket that closes it
    if at < len(text) or bad_byte is not None:
        reason = "not JSON: there is text after the array's end"
        findings = [Finding("bad-json", 0, reason, _ARRAY_ENDS)]
        place = _after(text, passed, at, line, column)
        yield RawRow(number, *place, 1.0, findings=findings, ends=True)


def _read_element(row: RawRow, text: str, at: int, bad_byte: int | None) -> int:
    """Read the row that begins at an offset of an array's text; returns the offset of its end."""
    try:
        row.value, end = _StrictDecoder(row.findings).raw_decode(text, at)
        after = _skip_space(text, end)
        if text[after : after + 1] not in (",", "]") or after == len(text):
            raise json.JSONDecodeError("Expecting ',' or ']' after a row", text, after)
    except (ValueError, RecursionError) as error:
        row.value, row.ends, end = None, True, len(text)
        position = error.pos if isinstance(error, json.JSONDecodeError) else at
        is_open = "Unterminated string" in str(error) or position > len(text) - _LONGEST_TOKEN
        if is_open and len(text) - at > MAX_ROW:
            row.findings = [_too_long(_ARRAY_ENDS)]
        elif is_open and bad_byte is not None:
            row.source = text[at:]
            row.findings = [_bad_utf8(bad_byte, len(row.source))]
        else:
            row.source = text[at : position + 1]
            row.findings = [_bad_json(error)._replace(at=position - at, hint=_ARRAY_ENDS)]
        return end
    row.source = text[at:end]
    if end - at > MAX_ROW:
        row.findings, row.ends = [_too_long(_ARRAY_ENDS)], True
    return end


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def _after(text: str, begin: int, end: int, line: int, column: int) -> tuple[int, int]:
    """Line and column of `end`, where those of `begin` are known."""
    lines = text.count("\n", begin, end)
    if lines == 0:
        return line, column + end - begin
    return line + lines, end - text.rfind("\n", begin, end)


def _bad_utf8(byte: int, at: int) -> Finding:
    return Finding("bad-utf8", at, f"byte 0x{byte:02x} is not UTF-8", "save the file as UTF-8")


def _too_long(hint: str = "look for missing line breaks between rows") -> Finding:
    reason = f"the row is longer than {MAX_ROW // 1_000_000} MB"
    return Finding("line-too-long", 0, reason, hint)
