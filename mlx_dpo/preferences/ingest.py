"""A preference file from its bytes to token ids, in one pass and a few rows at a time."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.encoding import (
    Encoded,
    encode_pairs,
    find_special,
    fit,
    special_tokens,
)
from mlx_dpo.preferences.problems import CODES, Problems
from mlx_dpo.preferences.reader import Row, read_rows
from mlx_dpo.preferences.repeats import text_digest
from mlx_dpo.preferences.row_table import CHOSEN_CLOSED, CUT, MERGED, REJECTED_CLOSED, RowTable
from mlx_dpo.preferences.store import write_ids
from mlx_dpo.preferences.strict_json import Finding, offset_of_key
from mlx_dpo.preferences.tokens import ChatFormat
from mlx_dpo.records import Preference, PreferenceExample

BATCH = 256  # rows in memory as text ...
BATCH_TEXT = 4_000_000  # ... or about so many characters of them

Progress = Callable[[float], None]  # the share of the file that is done
NOTHING = PreferenceExample([], [], [])


class Tokenising(NamedTuple):
    """How rows become ids, and where they go.

    Attributes:
        chat: The model's conversation format.
        max_length: Tokens kept of prompt + response.
        tokens: Where the ids are written; None to check only.
    """

    chat: ChatFormat
    max_length: int
    tokens: BinaryIO | None = None


@dataclass
class Ingested:
    """What a pass over a file found. ``read == kept + sum(dropped)``, always.

    Attributes:
        read: Rows of the file.
        unusable: Rows that say nothing usable and are not in the table, by code.
        table: The other rows.
    """

    read: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    table: RowTable = field(default_factory=RowTable)

    @property
    def dropped(self) -> Counter[str]:
        """Rows left out, by code."""
        return self.unusable + Counter(CODES[code - 1] for code in self.table.code if code)

    @property
    def kept(self) -> int:
        """Rows to train on."""
        return self.table.code.count(0)


def ingest(
    path: Path,
    problems: Problems,
    tokenising: Tokenising | None = None,
    progress: Progress | None = None,
) -> Ingested:
    """Read, check and tokenise a file, a few rows at a time.

    Args:
        path: The preference file.
        problems: Told of everything that is wrong with it.
        tokenising: None to check what can be checked without a model.
        progress: Told how far the pass has come.

    Raises:
        UsageError: If there is no such file.
        DataError: If it holds no row at all.
    """
    found, batch, size = Ingested(), list[Row](), 0
    tokenise = _Tokeniser(path, problems, found.table, tokenising) if tokenising else None
    for row in read_rows(path, problems):
        found.read += 1
        if row.preference is None:
            assert row.code is not None
            found.unusable[row.code] += 1
        else:
            _add(row, row.preference, found.table)
            batch.append(row)
            size += len(row.raw.source)
        if len(batch) == BATCH or size > BATCH_TEXT:
            if tokenise is not None:
                tokenise(batch)
            batch, size = [], 0
            if progress is not None:
                progress(row.raw.share)
    if tokenise is not None:
        tokenise(batch)
    if progress is not None:
        progress(1.0)
    return found


def _add(row: Row, preference: Preference, table: RowTable) -> None:
    digest = text_digest(preference.prompt)
    place = table.add(row.raw.number, row.raw.line, preference.kind, preference.id, digest)
    if row.code is not None:
        table.leave_out(place, row.code)
    if row.opposite is not None:  # nobody knows which of the two is right
        table.leave_out(bisect_left(table.number, row.opposite), "contradiction")


class _Tokeniser:
    """Adds ids and flags to the rows that were added to a table last."""

    def __init__(
        self, path: Path, problems: Problems, table: RowTable, tokenising: Tokenising
    ) -> None:
        self.path = path
        self.problems = problems
        self.table = table
        self.chat, self.max_length, self.tokens = tokenising
        self.special = special_tokens(self.chat)

    def __call__(self, rows: list[Row]) -> None:
        first = len(self.table) - len(rows)
        for place, row in enumerate(rows, first):
            if not self.table.code[place]:
                self._check_special(place, row)
        kept = [row.preference for row in rows if row.code is None and row.preference]
        encoded = iter(encode_pairs(kept, self.chat))
        for place, row in enumerate(rows, first):
            found = next(encoded) if row.code is None else None
            example = self._fit(place, row, found) if found is not None else None
            self.table.add_bounds(example or NOTHING)
            if example is not None and self.tokens is not None:
                write_ids(self.tokens, example)

    def _check_special(self, place: int, row: Row) -> None:
        assert row.preference is not None
        found = find_special(row.preference, self.special) if self.special else None
        if found is not None:
            part, text = found
            at = _offset_in(row, part, text)
            reason = f"{text!r} is a token of this model, and would not be read as words"
            hint = "remove it; the chat template writes the tokens that are needed"
            self._leave_out(place, row, Finding("special-token", at, reason, hint))

    def _fit(self, place: int, row: Row, found: Encoded | DataError) -> PreferenceExample | None:
        if isinstance(found, DataError):
            self._leave_out(place, row, Finding("template", 0, str(found)))
            return None
        whole, merged = found
        example, finding, cut = fit(whole, self.max_length)
        if finding is not None:
            self._leave_out(place, row, finding)
            return None
        if cut:
            needed = len(whole.prompt_ids) + max(len(whole.chosen_ids), len(whole.rejected_ids))
            reason = f"an answer's end is cut off: {needed} tokens of {self.max_length}"
            hint = "it is learned without its end; raise --max-length"
            row.note(self.path, Finding("response-cut", 0, reason, hint), self.problems)
        closing = self.chat.closing_id
        self.table.flags[place] = (
            cut * CUT
            + merged * MERGED
            + (example.chosen_ids[-1] == closing) * CHOSEN_CLOSED
            + (example.rejected_ids[-1] == closing) * REJECTED_CLOSED
        )
        return example

    def _leave_out(self, place: int, row: Row, finding: Finding) -> None:
        row.note(self.path, finding, self.problems)
        self.table.leave_out(place, finding.code)


def _offset_in(row: Row, part: str, text: str) -> int:
    """Where a text stands in the source of a row; the key it belongs to where it is escaped."""
    keys = (part, "user" if part == "prompt" else "", "chosen")  # turns may be shared
    key = next(key for key in keys if key in row.raw.value)
    begin = offset_of_key(row.raw.source, key)
    return max(begin, row.raw.source.find(text, begin))
