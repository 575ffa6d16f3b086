"""A row of a source as an importer sees it: what was used of it, and what was not.

A column that nobody reads must not vanish without a word. A `Row` remembers which of its columns
were asked for; the others are counted and named when the import is done.
"""

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Fields = dict[str, Any]  # a row, by key or column
_YES = (
    True,
    "true",
    "1",
    "1.0",
    "yes",
    "desirable",
    "good",
    "thumbs_up",
    "thumbs up",
    "like",
    "up",
)
_NO = (
    *(False, -1, "false", "0", "0.0", "-1", "no", "undesirable", "bad"),
    *("thumbs_down", "thumbs down", "dislike", "down"),
)
# Columns that say which of a row's answers is better.
VERDICTS = (
    *("winner", "preference", "preferred", "better", "label", "choice", "vote", "verdict"),
    "chosen",
)
_NOTHING: tuple[Any, ...] = (None, "", [], {})
# Objects as Python prints them, which pandas writes into CSV. Of NumPy, no comma is between them.
_PRINTED = re.compile(r"""\s*\[?\s*\{\s*['"]""")
_BETWEEN = re.compile(r"""('(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+")|\}\s+\{""", re.DOTALL)
_MESSAGE_KEYS = (
    re.compile(r"""['"](?:role|from)['"]\s*:"""),
    re.compile(r"""['"](?:content|value)['"]\s*:"""),
)
_LONGEST_PRINTED = 1_000_000  # characters


class LeftOutError(Exception):
    """A row without a usable pair; `code` is a key of `preferences.schema.LEVELS`."""

    def __init__(self, code: str, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.hint = hint


class Row:
    """An object of a source.

    Args:
        values: Its values, by key.
        path: Where it lies in its row, such as ``completions.``; empty for the row itself.

    Attributes:
        values: The same.
        notes: What the person who imports should know of the row, a sentence each.
        asked: The columns that hold the prompt.
    """

    def __init__(self, values: Fields, path: str = "") -> None:
        self.values = values
        self.notes: list[str] = []
        self.asked: tuple[str, ...] = ()
        self._path = path
        self._used: set[str] = set()
        self._inner: list[Row] = []

    def get(self, *names: str) -> Any:
        """The value of the first of some columns that holds one, which is used then; or None."""
        name = self.first(*names)
        return None if name is None else self.values[name]

    def first(self, *names: str) -> str | None:
        """The first of some columns that holds a value, which is used then."""
        name = first_of(self.values, names)
        if name is not None:
            self._used.add(name)
        return name

    def use(self, *names: str) -> None:
        """Count columns as used, whatever they hold."""
        self._used.update(names)

    def inner(self, name: str, values: Fields) -> "Row":
        """An object inside the row, whose keys count as columns of their own."""
        row = Row(values, f"{self._path}{name}.")
        row.notes = self.notes
        self.use(name)
        self._inner.append(row)
        return row

    def unused(self) -> Iterator[str]:
        """The columns that hold something and were not used."""
        for name, value in self.values.items():
            if name and name not in self._used and value not in _NOTHING:
                yield self._path + name
        for row in self._inner:
            yield from row.unused()


@dataclass
class Answer:
    """An answer that a row holds, to be paired with those of other rows.

    Attributes:
        prompt: Turns of the question.
        turns: Turns of the answer.
        score: Higher is better.
        kind: What a pair of it teaches.
    """

    prompt: list[Fields]
    turns: list[Fields]
    score: float
    kind: Any = None


@dataclass(frozen=True)
class Format:
    """One shape of rows.

    Attributes:
        name: For ``--format``.
        about: What it is, in a few words.
        needs: The columns by which a row is known, for messages.
        fits: Whether a row has this shape.
        pairs: The pairs of a row, with the keys of this project's rows; raises `LeftOutError`. Its
            second argument says whether a ranking gives all its pairs, or best against worst.
        answer: In place of `pairs`, where rows hold one answer each: what is in the row.
        once: Whether a pair that an earlier row gave is left out.
        lenient: Whether rows that don't fit are read too, which knows better what they lack.
    """

    name: str
    about: str
    needs: str
    fits: Callable[[Fields], bool]
    pairs: Callable[[Row, bool], list[Fields]] | None = None
    answer: Callable[[Row], Answer] | None = None
    once: bool = field(default=False, kw_only=True)
    lenient: bool = field(default=False, kw_only=True)

    def read(self, row: Row, all_pairs: bool) -> "Answer | list[Fields]":
        """The pairs of a row, or the one answer that it holds.

        Raises:
            LeftOutError: If it has no pair, or is of another shape.
        """
        if not self.lenient and not self.fits(row.values):
            reason = f"no row of the format {self.name}"
            raise LeftOutError("missing-key", reason, f"such rows have {self.needs}")
        if self.answer is not None:
            return self.answer(row)
        assert self.pairs is not None
        return self.pairs(row, all_pairs)


def first_of(values: Fields, names: tuple[str, ...]) -> str | None:
    """The first of some keys that has a value; an empty one only if no other has any."""
    held = [name for name in names if values.get(name) is not None]
    return next((name for name in held if not is_blank(values[name])), held[0] if held else None)


def is_blank(value: Any) -> bool:
    """Whether a value says nothing: none, an empty list or object, or white space."""
    return not value.strip() if isinstance(value, str) else value in _NOTHING


def has(values: Fields, *names: str) -> bool:
    """Whether all of some keys have a value."""
    return all(values.get(name) is not None for name in names)


def number(value: Any) -> float | None:
    """A score or rank; files that passed through CSV have them as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if found == found else None


def truth(value: Any) -> bool | None:
    """Yes or no, as files write it; None if it is neither."""
    if isinstance(value, str):
        value = value.strip().lower()
    return True if value in _YES else False if value in _NO else None


def parsed(value: Any) -> Any:
    """A list or object that stands in a column as text, as in CSV; other values as they are.

    It may be JSON, or objects as Python or NumPy print them. Text that only looks so stays text.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return _printed(value)
    return value


def _printed(text: str) -> Any:
    if len(text) > _LONGEST_PRINTED or not _PRINTED.match(text):
        return text
    commas = _BETWEEN.sub(lambda found: found[1] or "}, {", text.strip())
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not have
            return json.loads(json.dumps(ast.literal_eval(commas)))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def is_broken_list(value: Any) -> bool:
    """Whether a value is text that was written as messages, and that `parsed` can't read."""
    return (
        isinstance(value, str)
        and _PRINTED.match(value) is not None
        and isinstance(parsed(value), str)
        and all(key.search(value) for key in _MESSAGE_KEYS)
    )
