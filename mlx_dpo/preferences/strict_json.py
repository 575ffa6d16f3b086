"""JSON as its standard says: what Python's decoder lets pass without a word is told of here."""

import json
import re
from typing import Any, NamedTuple

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
