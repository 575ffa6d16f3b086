"""How long prompts and answers are, in tokens of a model or, without one, in words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DataError
from mlx_dpo.insight.audit.shortcuts import num_words, text_of
from mlx_dpo.preferences.encoding import encode_pairs, find_special, special_tokens
from mlx_dpo.preferences.tokens import ChatFormat
from mlx_dpo.records import Preference

_BATCH = 256  # rows tokenised together

Lengths = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Measures:
    """Lengths of N pairs, nothing cut.

    Attributes:
        unit: "tokens" or "words".
        lengths: int (3, N): prompt, chosen, rejected.
        merged: Rows where a token spans the boundary of prompt and answer; tokens only.
        special: Rows whose words hold the text of a token of the model's own: the row, the part
            (prompt, chosen or rejected) and the text; tokens only.
    """

    unit: str
    lengths: Lengths
    merged: list[int] = field(default_factory=list)
    special: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def gaps(self) -> Lengths:
        """Length of chosen minus length of rejected, (N,)."""
        gaps: Lengths = self.lengths[1] - self.lengths[2]
        return gaps


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a histogram: gaps from `low` to `high`, both included; None is open."""

    low: int | None
    high: int | None
    count: int


def in_words(preferences: Sequence[Preference]) -> Measures:
    """Lengths in words, for those who name no model."""
    rows = [
        [num_words(text_of(side)) for side in (p.prompt, p.chosen, p.rejected)] for p in preferences
    ]
    return Measures("words", np.array(rows, dtype=np.int64).T)


def in_tokens(
    preferences: Sequence[Preference],
    chat: ChatFormat,
    after_rows: Callable[[int], None] = lambda count: None,
) -> Measures:
    """Lengths in tokens, template and closing token counted as in training.

    Args:
        preferences: The rows.
        chat: The model's conversation format.
        after_rows: Called with how many more are done.

    Raises:
        DataError: If the chat template refuses a row.
    """
    rows: list[list[int]] = []
    merged, special, pattern = [], [], special_tokens(chat)
    for start in range(0, len(preferences), _BATCH):
        batch = preferences[start : start + _BATCH]
        found = encode_pairs(batch, chat)
        for row, encoded in enumerate(found, start):
            if isinstance(encoded, DataError):
                raise DataError(f"row {row + 1}: {encoded}")
            example, has_merge = encoded
            rows.append([len(ids) for ids in example])
            if has_merge:
                merged.append(row)
            if pattern and (words := find_special(batch[row - start], pattern)):
                special.append((row, *words))
        after_rows(len(found))
    return Measures("tokens", np.array(rows, dtype=np.int64).T, merged, special)


def histogram(gaps: npt.NDArray[Any], bars_each_side: int = 4) -> list[Bar]:
    """Count whole-number gaps in bars of one width around zero; the outermost are open.

    The width is odd, so that the middle bar reaches as far to either side, and wide enough for 19
    of 20 gaps to lie in closed bars.
    """
    reach = float(np.quantile(np.abs(gaps), 0.95))
    half = 0
    while (2 * half + 1) * (bars_each_side - 0.5) < reach:
        half += 1
    width = 2 * half + 1
    place = np.clip(np.floor_divide(gaps + half, width), -bars_each_side, bars_each_side)
    bars = []
    for number in range(-bars_each_side, bars_each_side + 1):
        low, high = number * width - half, number * width + half
        bars.append(
            Bar(
                None if number == -bars_each_side else low,
                None if number == bars_each_side else high,
                int((place == number).sum()),
            )
        )
    return bars
