"""The elements of a JSON array, one at a time, from a file of any size."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from mlx_dpo.preferences.strict_json import Finding, StrictDecoder, bad_json

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
