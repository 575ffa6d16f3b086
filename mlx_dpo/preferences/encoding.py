"""Many pairs to token ids, in batches: each pair kept, cut, or left out with a code.

`ChatFormat` defines the ids of a pair. `PairEncoder` adds the one rule for which pairs can be used:
`ingest` applies it to a file, `encode_preferences` to pairs in memory.
"""

import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.chat import ChatFormat, CheckedPair
from mlx_dpo.preferences.json_text import Finding, offset_of_key
from mlx_dpo.preferences.reader import CheckedRow, read_rows, text_digest
from mlx_dpo.preferences.schema import CODES, ERROR, LEVELS, WARNING, Problems
from mlx_dpo.records import EncodedPairs, Preference, PreferenceExample

BATCH = 256  # pairs that are encoded together ...
BATCH_TEXT = 1_000_000  # ... or about so many characters of rows

CUT, MERGED, CHOSEN_CLOSED, REJECTED_CLOSED = 1, 2, 4, 8  # flags of a pair
# Columns of the table of R rows.
COLUMNS: dict[str, Any] = {
    "number": np.int64,  # (R,): of the row in its file, counted from 1
    "line": np.int64,  # (R,)
    "code": np.uint8,  # (R,): 0 where the row is kept, else 1 + its place in CODES
    "flags": np.uint8,  # (R,)
    "kind": np.int32,  # (R,): its place among the kinds
    "prompt": np.uint8,  # (R, 16): digest of the prompt
    "id": np.uint8,  # all ids as UTF-8, joined
    "id_bounds": np.int64,  # (R + 1,)
    "bounds": np.int64,  # (3 R + 1,): where prompt, chosen and rejected of each row begin
}

ShareDone = Callable[[float], None]  # called with the share of a file that is done

_NO_IDS = PreferenceExample([], [], [])


class FittedPair(NamedTuple):
    """A pair cut to the length.

    Attributes:
        example: The ids kept; empty where the pair is left out.
        finding: Why the pair is left out, or a warning about it.
        flags: Sum of `CUT`, `MERGED`, `CHOSEN_CLOSED` and `REJECTED_CLOSED`.
        notes: Further warnings, about a pair that is kept.
    """

    example: PreferenceExample
    finding: Finding | None = None
    flags: int = 0
    notes: tuple[Finding, ...] = ()

    @property
    def is_kept(self) -> bool:
        """Whether the pair can be trained on."""
        return self.finding is None or LEVELS[self.finding.code] == WARNING


class PairEncoder:
    """Encodes pairs and says which of them can be used.

    Args:
        chat: The model's conversation format.
        max_length: Tokens kept of prompt + response.
    """

    def __init__(self, chat: ChatFormat, max_length: int) -> None:
        self.chat = chat
        self.max_length = max_length
        self.special = special_tokens(chat)

    def __call__(self, preferences: Sequence[Preference]) -> list[FittedPair]:
        """The ids of each pair, or why it is left out."""
        special = [self._special_token(preference) for preference in preferences]
        clean = [p for p, finding in zip(preferences, special, strict=True) if finding is None]
        encoded = iter(self.chat.check_pairs(clean, self.max_length))
        return [
            self._fit(next(encoded)) if finding is None else FittedPair(_NO_IDS, finding)
            for finding in special
        ]

    def _special_token(self, preference: Preference) -> Finding | None:
        found = find_special(preference, self.special) if self.special else None
        if found is None:
            return None
        part, text = found
        reason = f"{text!r} is a token of this model, and would not be read as words"
        hint = "remove it; the chat template writes the tokens that are needed"
        return Finding("special-token", part, reason, hint)

    def _fit(self, encoded: CheckedPair | DataError) -> FittedPair:
        if isinstance(encoded, DataError):
            return FittedPair(_NO_IDS, Finding("template", 0, str(encoded)))
        (prompt, chosen, rejected), merged, notes, goes_on = encoded
        room = max(0, self.max_length - len(prompt))
        example = PreferenceExample(prompt, chosen[:room], rejected[:room])
        if room == 0:
            more = "more than " if goes_on[0] else ""
            tokens = f"{more}{len(prompt)} tokens of {self.max_length}"
            reason = f"the prompt fills the length: {tokens}"
            hint = "raise --max-length or shorten the prompt"
            return FittedPair(_NO_IDS, Finding("too-long", 0, reason, hint))
        if chosen == rejected and not goes_on[1]:
            reason = "chosen equals rejected as the model sees them"
            return FittedPair(_NO_IDS, Finding("equal", "rejected", reason))
        if example.chosen_ids == example.rejected_ids:
            reason = f"chosen equals rejected once cut to {self.max_length} tokens"
            return FittedPair(_NO_IDS, Finding("equal", "rejected", reason, "raise --max-length"))
        needed = len(prompt) + max(len(chosen), len(rejected))
        finding = None
        if needed > self.max_length:
            more = "more than " if goes_on[1] else ""
            reason = f"an answer's end is cut off: {more}{needed} tokens of {self.max_length}"
            hint = "it is learned without its end; raise --max-length"
            finding = Finding("response-cut", 0, reason, hint)
        closing = self.chat.closing_id
        flags = (
            (finding is not None) * CUT
            + merged * MERGED
            + (example.chosen_ids[-1] == closing) * CHOSEN_CLOSED
            + (example.rejected_ids[-1] == closing) * REJECTED_CLOSED
        )
        return FittedPair(example, finding, flags, tuple(notes))


def encode_preferences(
    preferences: Sequence[Preference], chat: ChatFormat, *, max_length: int, drop_bad: bool = False
) -> EncodedPairs:
    """Tokenize pairs in memory, leaving out those with nothing left to learn from.

    Args:
        preferences: Rows of a preference file.
        chat: The model's conversation format.
        max_length: Tokens kept of prompt + response.
        drop_bad: Whether pairs that hold a special token, or that the chat template refuses, are
            left out instead of refused, as in training.

    Returns:
        The pairs kept, and what became of the others.

    Raises:
        DataError: If there is such a pair and `drop_bad` is off; the message names it.
    """
    encoder = PairEncoder(chat, max_length)
    fitted = [pair for batch in in_batches(preferences) for pair in encoder(batch)]
    kept: list[tuple[Preference, FittedPair]] = []
    dropped: Counter[str] = Counter()
    for preference, pair in zip(preferences, fitted, strict=True):
        finding = pair.finding
        if finding is None or pair.is_kept:
            kept.append((preference, pair))
            continue
        if LEVELS[finding.code] == ERROR and not drop_bad:
            hint = "; ".join(filter(None, [finding.hint, "--drop-bad leaves the pair out"]))
            raise DataError(f"pair {preference.id}: {finding.reason}; {hint}")
        dropped[finding.code] += 1

    def count(flag: int) -> int:
        return sum(bool(pair.flags & flag) for _, pair in kept)

    return EncodedPairs(
        examples=[pair.example for _, pair in kept],
        preferences=[preference for preference, _ in kept],
        read=len(preferences),
        dropped=dict(dropped),
        num_cut=count(CUT),
        num_merged=count(MERGED),
        num_closed=count(CHOSEN_CLOSED) + count(REJECTED_CLOSED),
    )


def in_batches(preferences: Sequence[Preference]) -> Iterator[Sequence[Preference]]:
    """Pairs in slices of `BATCH`, or of fewer that have about `BATCH_TEXT` characters."""
    start = size = 0
    for end, pair in enumerate(preferences, 1):
        size += sum(len(turn.content) for turn in (*pair.prompt, *pair.chosen, *pair.rejected))
        if end - start == BATCH or size > BATCH_TEXT or end == len(preferences):
            yield preferences[start:end]
            start, size = end, 0


class RowTable:
    """What is known of the rows of a file while it is read; a few dozen bytes a row."""

    def __init__(self) -> None:
        self.number, self.line = array("q"), array("q")
        self.code, self.flags = bytearray(), bytearray()
        self.kind, self.kinds = array("i"), dict[str, int]()
        self.prompt, self.id = bytearray(), bytearray()
        self.id_bounds, self.bounds = array("q", [0]), array("q", [0])

    def __len__(self) -> int:
        return len(self.number)

    def add(self, number: int, line: int, kind: str, name: str, prompt: bytes) -> int:
        """Add a row; returns its place in the table."""
        self.number.append(number)
        self.line.append(line)
        self.code.append(0)
        self.flags.append(0)
        self.kind.append(self.kinds.setdefault(kind, len(self.kinds)))
        self.prompt += prompt
        self.id += name.encode()
        self.id_bounds.append(len(self.id))
        return len(self) - 1

    def leave_out(self, row: int, code: str) -> None:
        """Set why a row is left out; the first reason stays."""
        if not self.code[row]:
            self.code[row] = 1 + CODES.index(code)

    def add_bounds(self, example: PreferenceExample) -> None:
        """Add the lengths of the next row's ids."""
        for ids in example:
            self.bounds.append(self.bounds[-1] + len(ids))

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of `COLUMNS`."""
        columns = {name: np.array(getattr(self, name), dtype) for name, dtype in COLUMNS.items()}
        return {**columns, "prompt": columns["prompt"].reshape(-1, 16)}


class Tokenizing(NamedTuple):
    """How rows become ids, and where the ids go.

    Attributes:
        chat: The model's conversation format.
        max_length: Tokens kept of prompt + response.
        tokens: File to which the ids are written; None to check only.
    """

    chat: ChatFormat
    max_length: int
    tokens: BinaryIO | None = None


@dataclass
class Ingested:
    """The account of a pass over a file. ``read == kept + sum(dropped)``, always.

    Attributes:
        read: Rows of the file.
        unusable: Rows without a usable pair, which are not in the table, by code.
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
    tokenizing: Tokenizing | None = None,
    progress: ShareDone | None = None,
) -> Ingested:
    """Read, check and tokenize a file, a few rows at a time.

    Args:
        path: The preference file.
        problems: Gets everything that is wrong with it.
        tokenizing: None to check what can be checked without a model.
        progress: Called after each batch.

    Raises:
        UsageError: If there is no such file, or the tokenizer or chat template fails.
        DataError: If it holds no row at all.
    """
    account, batch, size = Ingested(), list[CheckedRow](), 0
    encoder = PairEncoder(tokenizing.chat, tokenizing.max_length) if tokenizing else None
    tokens = tokenizing.tokens if tokenizing else None

    def end_batch() -> None:
        if encoder is not None:
            _add_ids(batch, account.table, encoder, tokens, path, problems)
        batch.clear()

    for row in read_rows(path, problems):
        account.read += 1
        if row.preference is None:
            assert row.code is not None
            account.unusable[row.code] += 1
        else:
            _add(row, row.preference, account.table)
            batch.append(row)
            size += len(row.raw.source)
        if len(batch) == BATCH or size > BATCH_TEXT:
            end_batch()
            size = 0
            if progress is not None:
                progress(row.raw.share)
    end_batch()
    if progress is not None:
        progress(1.0)
    return account


def _add(row: CheckedRow, preference: Preference, table: RowTable) -> None:
    digest = text_digest(preference.prompt)
    place = table.add(row.raw.number, row.raw.line, preference.kind, preference.id, digest)
    if row.code is not None:
        table.leave_out(place, row.code)
    if row.opposite is not None:  # nobody knows which of the two is right
        table.leave_out(bisect_left(table.number, row.opposite), "contradiction")


def _add_ids(
    rows: list[CheckedRow],
    table: RowTable,
    encoder: PairEncoder,
    tokens: BinaryIO | None,
    path: Path,
    problems: Problems,
) -> None:
    """Add the ids and flags of the rows that were added to the table last."""
    usable = [row.preference for row in rows if row.code is None and row.preference]
    fitted = iter(encoder(usable))
    for place, row in enumerate(rows, len(table) - len(rows)):
        pair = next(fitted) if row.code is None else FittedPair(_NO_IDS)
        if pair.finding is not None:
            row.note(path, _in_source(pair.finding, row, encoder), problems)
        for note in pair.notes:
            row.note(path, note, problems)
        if row.code is not None:
            table.leave_out(place, row.code)
        table.flags[place] = pair.flags
        table.add_bounds(pair.example)
        if tokens is not None:
            tokens.write(ids_as_bytes(pair.example))


def _in_source(finding: Finding, row: CheckedRow, encoder: PairEncoder) -> Finding:
    """A special token is found where it stands; at its key where it is escaped."""
    if finding.code != "special-token" or not (row.preference and encoder.special):
        return finding
    part, text = find_special(row.preference, encoder.special) or ("", "")
    keys = (part, "user" if part == "prompt" else "", "chosen")  # turns may be shared
    begin = offset_of_key(row.raw.source, next(key for key in keys if key in row.raw.value))
    return finding._replace(at=max(begin, row.raw.source.find(text, begin)))


def ids_as_bytes(example: PreferenceExample) -> bytes:
    """The ids of a pair as a store holds them: int32, little-endian."""
    return np.array([*example[0], *example[1], *example[2]], dtype="<i4").tobytes()


def special_tokens(chat: ChatFormat) -> re.Pattern[str] | None:
    """Matches the texts that the tokenizer reads as tokens of its own; None if it has none."""
    added = chat.tokenizer.added_tokens_decoder.values()
    texts = sorted({token.content for token in added if token.special and token.content})
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def find_special(preference: Preference, special: re.Pattern[str]) -> tuple[str, str] | None:
    """The first special token's text inside the words of a pair; they would not be words.

    Returns:
        ``prompt``, ``chosen`` or ``rejected``, and the text.
    """
    for part in ("prompt", "chosen", "rejected"):
        for turn in getattr(preference, part):
            if match := special.search(turn.content):
                return part, match[0]
    return None
