"""JSON as its standard says: what Python's decoder lets pass without a word is told of here."""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlx_dpo.errors import UsageError

_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\]]|-?Infinity|NaN', re.DOTALL)
_COLON = re.compile(r"[ \t\r\n]*:")
_DEEPER = {"{": 1, "[": 1, "}": -1, "]": -1}


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


class StrictDecoder(json.JSONDecoder):
    """Python's decoder, which by itself lets repeated keys and NaN pass without a word.

    Args:
        findings: Gets what is wrong with the text.
    """

    def __init__(self, findings: list[Finding]) -> None:
        self._findings = findings
        super().__init__(object_pairs_hook=self._object, parse_constant=self._constant)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        twice = None
        for key, value in pairs:
            if twice is None and key in found:
                twice = key
            found[key] = value
        if twice is not None:
            reason = f"key {twice!r:.60} comes twice"
            self._findings.append(Finding("duplicate-key", twice, reason, "keep one"))
        return found

    def _constant(self, name: str) -> float:
        reason = f"{name} is not a value JSON knows"
        self._findings.append(Finding("nan", name, reason, "give a number, or null"))
        return float(name.replace("Infinity", "inf"))


def bad_json(error: ValueError | RecursionError) -> Finding:
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
        depth += _DEEPER.get(text, 0)
        if text[0] != '"' or not _COLON.match(source, token.end()) or not _same(text, key):
            continue
        if depth == 1:
            outer = token.start()
            if not last:
                break
        elif last or not inner:
            inner = token.start()
    return outer if outer >= 0 else inner


def offset_of_literal(source: str, name: str) -> int:
    """Where NaN, Infinity or -Infinity stands outside of texts; 0 where it doesn't."""
    return next((token.start() for token in _TOKEN.finditer(source) if token[0] == name), 0)


def _same(quoted: str, key: str) -> bool:
    # A key may be written with escapes: "cho\u0073en".
    return quoted[1:-1] == key or ("\\" in quoted and json.loads(quoted) == key)


_BLOCK = 1 << 18  # bytes read at once
_LONGEST_TOKEN = (
    16  # `-Infinity`, `\ud83d\ude42`: an error this near the end may be for want of text
)
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(slots=True)
class Element:
    """One element, or what stands where one should.

    Attributes:
        source: Its text.
        value: What it says; None where it can't be read.
        findings: What is wrong with it as JSON.
        too_long: Whether it was given up for its length.
        bad_byte: The byte that is not UTF-8 and stands behind `source`.
        ends: Whether the rest of the array can't be read.
    """

    source: str = ""
    value: Any = None
    findings: list[Finding] = field(default_factory=list)
    too_long: bool = False
    bad_byte: int | None = None
    ends: bool = False


class ArrayReader:
    """Reads the elements of an array.

    Args:
        file: Stands before the array's bracket; read a block at a time.
        longest: Characters an element may have.
    """

    def __init__(self, file: BinaryIO, longest: int) -> None:
        self._file = file
        self._longest = longest
        self._text, self._at = "", 0  # what has been read, and the place reached in it
        self._bytes = b""  # the beginning of a character whose rest is in the next block
        self._bad_byte: int | None = None
        self._at_end = False
        self.line = self.column = 1

    def rows(self) -> Iterator[tuple[int, int, Element]]:
        """Line, column and element, up to the array's end or to what can't be read."""
        self._skip_space()
        follows = self._step()  # over the bracket that opens the array
        more = follows != "]"
        while more:
            place = self.line, self.column
            element, length = self._read_element()
            yield *place, element
            if element.ends:
                return
            self._pass(length)
            more = self._skip_space() == ","
            if more:
                self._step()
        self._step()  # over the bracket that closes it
        if self._at < len(self._text) or self._bad_byte is not None:
            found = Finding("bad-json", 0, "not JSON: there is text after the array's end")
            yield self.line, self.column, Element(findings=[found], ends=True)

    def _read_element(self) -> tuple[Element, int]:
        """The element that begins here, and its length; more of the file is read as needed."""
        while True:
            element = Element()
            found = self._decode(element)
            if found is None:
                return element, len(element.source)
            if not self._may_be_incomplete(found) or not self._read_more():
                return self._broken(found), 0
            if len(self._text) - self._at > self._longest + _BLOCK:
                return Element(too_long=True, ends=True), 0

    def _decode(self, element: Element) -> Finding | None:
        """Read the element from the text there is; tells why that can't be done."""
        text, at = self._text, self._at
        try:
            element.value, end = StrictDecoder(element.findings).raw_decode(text, at)
            after = _SPACE.match(text, end).end()  # type: ignore[union-attr]
            if text[after : after + 1] not in (",", "]") or after == len(text):
                raise json.JSONDecodeError("Expecting ',' or ']' after a row", text, after)
        except (ValueError, RecursionError) as error:
            found = bad_json(error)
            assert isinstance(found.at, int)
            return found._replace(at=max(0, found.at - at))
        element.source = text[at:end]
        if end - at > self._longest:
            element.too_long = element.ends = True
        return None

    def _may_be_incomplete(self, found: Finding) -> bool:
        assert isinstance(found.at, int)
        near_end = found.at > len(self._text) - self._at - _LONGEST_TOKEN
        is_open = near_end or "Unterminated string" in found.reason
        return is_open and found.reason.startswith("not JSON")

    def _broken(self, found: Finding) -> Element:
        assert isinstance(found.at, int)
        if self._bad_byte is not None and self._may_be_incomplete(found):
            return Element(self._text[self._at :], bad_byte=self._bad_byte, ends=True)
        return Element(self._text[self._at :][: found.at + 1], findings=[found], ends=True)

    def _step(self) -> str:
        """Go one character on, and over the white space after it; returns what stands there."""
        self._pass(1)
        return self._skip_space()

    def _skip_space(self) -> str:
        while True:
            end = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            self._pass(end - self._at)
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def _pass(self, length: int) -> None:
        begin, self._at = self._at, min(self._at + length, len(self._text))
        lines = self._text.count("\n", begin, self._at)
        self.line += lines
        if lines:
            self.column = self._at - self._text.rfind("\n", begin, self._at)
        else:
            self.column += self._at - begin

    def _read_more(self) -> bool:
        """Add a block, the larger the more is there already; False where nothing is left."""
        if self._at_end:
            return False
        kept, self._at = self._text[self._at :], 0
        block = self._file.read(max(_BLOCK, len(kept)))
        data, self._bytes = self._bytes + block, b""
        self._at_end = not block
        try:
            self._text = kept + data.decode()
        except UnicodeDecodeError as error:
            self._text = kept + data[: error.start].decode()
            if error.reason == "unexpected end of data" and block:
                self._bytes = data[error.start :]
            else:
                self._bad_byte, self._at_end = data[error.start], True
        return True


# --- The rows of a JSON-lines file or a JSON array as they stand in it,
# each with its place.
#
# Neither is ever in memory as a whole: JSON lines are read line by line, an array row by row.
# What breaks an array ends the reading: nobody can know where the next row would begin.


MAX_ROW = 10_000_000  # bytes of a line, characters of a row in an array; no pair is near it
_BOM = b"\xef\xbb\xbf"


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

    def place(self, finding: Finding) -> tuple[int, int]:
        """Line and column of a finding; of the row where it holds no such key."""
        at = finding.at
        if finding.code == "nan":
            at = offset_of_literal(self.source, str(at))
        elif isinstance(at, str):
            at = offset_of_key(self.source, at, last=finding.code == "duplicate-key")
        lines = self.source.count("\n", 0, at)
        if lines == 0:
            return self.line, self.column + at
        return self.line + lines, at - self.source.rfind("\n", 0, at)


def raw_rows(path: Path) -> Iterator[RawRow]:
    """Rows of a file; whether it is an array or JSON lines is read off its first character.

    Raises:
        UsageError: If it is not there or can't be read.
    """
    try:
        with open_file(path) as file:
            begin = len(_BOM) if _has_bom(file) else 0
            file.seek(begin)
            is_array = _begins_array(file)
            file.seek(begin)
            yield from _array_rows(file) if is_array else _json_lines(file)
    except OSError as error:
        raise not_readable(path, error) from None


def check_readable(path: Path) -> None:
    """Find out now whether a file can be read later.

    Raises:
        UsageError: If it can't.
    """
    has_bom(path)


def has_bom(path: Path) -> bool:
    """Whether a file begins with a byte order mark.

    Raises:
        UsageError: If it can't be read.
    """
    try:
        with open_file(path) as file:
            return _has_bom(file)
    except OSError as error:
        raise not_readable(path, error) from None


def open_file(path: Path) -> BufferedReader:
    """Open a preference file, which is read more than once: no pipe, and no device.

    Raises:
        OSError: If it can't be opened.
        UsageError: If it is no ordinary file.
    """
    try:
        mode = path.stat().st_mode
    except ValueError:  # a name with a zero byte
        raise UsageError(f"{path}: not the name of a file") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"{path}: is a pipe or device; pairs are a .json or .jsonl file")
    return path.open("rb")


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
    try:
        row.value = StrictDecoder(row.findings).decode(row.source)
    except (ValueError, RecursionError) as error:
        row.findings[:] = [bad_json(error)]


def _array_rows(file: BinaryIO) -> Iterator[RawRow]:
    size = max(1, os.fstat(file.fileno()).st_size)
    reader = ArrayReader(file, MAX_ROW)
    for number, (line, column, found) in enumerate(reader.rows(), 1):
        row = RawRow(number, line, column, min(1.0, file.tell() / size), found.source, found.value)
        row.findings = found.findings
        if found.too_long:
            row.findings = [_too_long()._replace(hint=_ARRAY_ENDS)]
        elif found.bad_byte is not None:
            row.findings = [_bad_utf8(found.bad_byte, len(found.source))]
        elif found.ends:
            row.findings = [row.findings[0]._replace(hint=_ARRAY_ENDS)]
        row.ends = found.ends
        yield row


_ARRAY_ENDS = "the rest of the array was not read; mend this first"


def _bad_utf8(byte: int, at: int) -> Finding:
    return Finding("bad-utf8", at, f"byte 0x{byte:02x} is not UTF-8", "save the file as UTF-8")


def _too_long() -> Finding:
    return Finding(
        "line-too-long",
        0,
        f"the row is longer than {MAX_ROW // 1_000_000} MB",
        "look for missing line breaks between rows",
    )
