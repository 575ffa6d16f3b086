"""The rows of a JSON-lines file or a JSON array as they stand in it, each with its place.

Neither is ever in memory as a whole: JSON lines are read line by line, an array row by row. What
breaks an array ends the reading: nobody can know where the next row would begin.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from mlx_dpo.errors import UsageError
from mlx_dpo.preferences.arrays import ArrayReader
from mlx_dpo.preferences.strict_json import (
    Finding,
    StrictDecoder,
    bad_json,
    offset_of_key,
    offset_of_literal,
)

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
