"""What tells the chosen answer by its surface alone: length, punctuation, layout, first word.

A rule gives a value to each answer and bets on the larger one of a pair. Where such a bet wins
often, the pairs can be learned without what they are meant to teach. The verdicts on these
measures are in `checks`.
"""

import math
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.encoding import find_special, in_batches, special_tokens
from mlx_dpo.preferences.scores import wilson_interval
from mlx_dpo.records import Message, Preference

Lengths = npt.NDArray[np.int64]
Values = npt.NDArray[Any]

_FOLDS = 5  # of the prompts, to judge first words on prompts they were not counted on
_WORD = re.compile(r"\w+(?:'\w+)*")
_MARK = re.compile(r"[^\w\s]")
_SENTENCE_END = re.compile(r"[.!?\u3002]+(?=\W*(?:\s|$))")
_MARKDOWN = re.compile(
    r"^ {0,3}(?:#{1,6} |[-*+] |\d+[.)] |> |```)|\*\*|__|`|\[[^\]\n]*\]\(", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Measures:
    """Lengths of N pairs, nothing cut.

    Attributes:
        unit: "tokens" or "words".
        lengths: int (3, N): prompt, chosen, rejected.
        character_gaps: int (N,): characters of chosen minus rejected; words only.
        merged: Rows where a token spans the boundary of prompt and answer; tokens only.
        special: Rows whose words hold the text of a token of the model's own: the row, the part
            (prompt, chosen or rejected) and the text; tokens only.
    """

    unit: str
    lengths: Lengths
    character_gaps: Lengths | None = None
    merged: list[int] = field(default_factory=list)
    special: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def gaps(self) -> Lengths:
        """Length of chosen minus length of rejected, (N,)."""
        gaps: Lengths = self.lengths[1] - self.lengths[2]
        return gaps


def in_words(preferences: Iterable[Preference]) -> Measures:
    """Lengths in words, where no model is named; rows are read once and none is held."""
    numbers = array("q")
    for preference in preferences:
        texts = pair_texts(preference)
        numbers.extend(map(num_words, texts))
        numbers.append(len(texts[1]) - len(texts[2]))
    columns = np.array(numbers, dtype=np.int64).reshape(-1, 4).T
    return Measures("words", columns[:3], columns[3])


def in_tokens(
    preferences: Sequence[Preference],
    chat: ChatFormat,
    after_rows: Callable[[int], None] = lambda count: None,
    refused: list[int] | None = None,
) -> Measures:
    """Lengths in tokens, template and closing token counted as in training.

    Raises:
        DataError: If the chat template refuses a row and there is no `refused`, or no row is left.
    """
    rows: list[list[int]] = []
    first = None
    merged, special, pattern = [], [], special_tokens(chat)
    start = 0
    for batch in in_batches(preferences):
        for position, encoded in enumerate(chat.encode_pairs(batch), start):
            if isinstance(encoded, DataError):
                if refused is None:
                    raise DataError(f"row {position + 1}: {encoded}")
                first = first or encoded
                refused.append(position)
                continue
            example, has_merge = encoded
            row = len(rows)
            rows.append([len(ids) for ids in example])
            if has_merge:
                merged.append(row)
            if pattern and (words := find_special(batch[position - start], pattern)):
                special.append((row, *words))
        start += len(batch)
        after_rows(len(batch))
    if not rows:
        reason = f"{len(preferences)} template, such as {first}" if first else "there is none"
        raise DataError(f"no pair is left to look at ({reason})")
    return Measures("tokens", np.array(rows, dtype=np.int64).T, None, merged, special)


@dataclass(frozen=True, slots=True)
class GapBar:
    """A bar of a histogram: gaps from `low` to `high`, both included; None is open."""

    low: int | None
    high: int | None
    count: int

    @property
    def label(self) -> str:
        """`+3 to +5`, `0`, `-12 or less`."""
        if self.low is None:
            return f"{self.high:+d} or less"
        if self.high is None:
            return f"{self.low:+d} or more"
        label = f"{self.low:+d}" if self.low == self.high else f"{self.low:+d} to {self.high:+d}"
        return label.replace("+0", "0")


def histogram(gaps: Lengths, bars_each_side: int = 4) -> list[GapBar]:
    """Count whole-number gaps in bars of one width around zero; the outermost are open.

    The width is odd, so that the middle bar reaches as far to either side, and wide enough for 19
    of 20 gaps to lie in closed bars.
    """
    reach = float(np.quantile(np.abs(gaps), 0.95))
    half = 0
    while (2 * half + 1) * (bars_each_side - 0.5) < reach:
        half += 1
    width = 2 * half + 1
    bar_of = np.clip(np.floor_divide(gaps + half, width), -bars_each_side, bars_each_side)
    return [
        GapBar(
            None if number == -bars_each_side else number * width - half,
            None if number == bars_each_side else number * width + half,
            int((bar_of == number).sum()),
        )
        for number in range(-bars_each_side, bars_each_side + 1)
    ]


@dataclass(frozen=True, slots=True)
class Bet:
    """A rule's record: pairs whose chosen answer has the larger value, or the same (ties)."""

    wins: int
    ties: int
    num_pairs: int

    @property
    def auc(self) -> float:
        """Probability that the rule picks the chosen one of a pair's two answers; ties by coin."""
        return (self.wins + self.ties / 2) / self.num_pairs if self.num_pairs else 0.5

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of `auc`. Half wins for ties make it a little too wide."""
        return wilson_interval(self.wins + self.ties / 2, self.num_pairs)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.auc:.2f} ({low:.2f}-{high:.2f})"

    def figures(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "auc": self.auc,
            "interval": list(self.interval),
            "ties": self.ties,
            "pairs": self.num_pairs,
        }


def bet(gaps: Values) -> Bet:
    """A rule's record, from (N,) values of the chosen answers minus those of the rejected."""
    return Bet(int((gaps > 0).sum()), int((gaps == 0).sum()), len(gaps))


def text_of(turns: Sequence[Message]) -> str:
    """The contents of some turns."""
    return "\n".join(turn.content for turn in turns)


def pair_texts(preference: Preference) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as texts."""
    return text_of(preference.prompt), text_of(preference.chosen), text_of(preference.rejected)


def num_words(text: str) -> int:
    """Words, separated by white space."""
    return len(text.split())


def punctuation(text: str) -> float:
    """Marks per word: a count of marks would be another measure of length."""
    return len(_MARK.findall(text)) / max(1, num_words(text))


def markdown(text: str) -> int:
    """Headings, list items, quotes, fences, bold, code and links."""
    return len(_MARKDOWN.findall(text))


def sentences(text: str) -> int:
    """Ends of sentences."""
    return len(_SENTENCE_END.findall(text))


def first_word(turns: Sequence[Message]) -> str:
    """The word an answer opens with, in lower case; empty where there is none."""
    match = _WORD.search(text_of(turns))
    return match.group().casefold() if match else ""


def feature_gaps(preferences: Sequence[Preference], feature: Callable[[str], float]) -> Values:
    """A feature of the chosen answer minus that of the rejected, (N,)."""
    return np.array(
        [feature(text_of(p.chosen)) - feature(text_of(p.rejected)) for p in preferences]
    )


def first_word_gaps(preferences: Sequence[Preference]) -> Values:
    """How much more the chosen answer's first word promises than the rejected one's, (N,).

    A word's value is its log-odds of opening a chosen answer, counted on other prompts than the
    pair's own (five folds by prompt): counted on the pair itself, any rare word would look like a
    perfect sign.
    """
    firsts = _first_words(preferences)
    folds = [zlib.crc32(text_of(p.prompt).encode()) % _FOLDS for p in preferences]
    total = _count_sides(firsts)
    by_fold = {
        fold: _count_sides([f for f, own in zip(firsts, folds, strict=True) if own == fold])
        for fold in set(folds)
    }

    def value(word: str, fold: int) -> float:
        chosen, rejected = (t[word] - o[word] for t, o in zip(total, by_fold[fold], strict=True))
        return math.log((chosen + 1) / (rejected + 1))

    return np.array(
        [
            0.0 if chosen == rejected else value(chosen, fold) - value(rejected, fold)
            for (chosen, rejected), fold in zip(firsts, folds, strict=True)
        ]
    )


def telling_first_words(preferences: Sequence[Preference], count: int = 3) -> list[str]:
    """The first words that tell the sides apart most, as `i: 30 chosen, 2 rejected`."""
    chosen, rejected = _count_sides(_first_words(preferences))
    words = sorted(
        {*chosen, *rejected}, key=lambda word: (-abs(chosen[word] - rejected[word]), word)
    )
    return [f"{w!r}: {chosen[w]} chosen, {rejected[w]} rejected" for w in words[:count]]


def _first_words(preferences: Sequence[Preference]) -> list[tuple[str, str]]:
    return [(first_word(p.chosen), first_word(p.rejected)) for p in preferences]


def _count_sides(firsts: Sequence[tuple[str, str]]) -> tuple[Counter[str], Counter[str]]:
    return Counter(chosen for chosen, _ in firsts), Counter(rejected for _, rejected in firsts)
