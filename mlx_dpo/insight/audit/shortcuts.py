"""Rules that tell the chosen answer by its surface alone, and how often each is right.

A rule gives a value to each answer and bets on the larger one of a pair. Where such a bet wins
often, the pairs can be learned without what they are meant to teach.
"""

import math
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.insight.evaluation import wilson_interval
from mlx_dpo.records import Message, Preference

Values = npt.NDArray[Any]

_WORD = re.compile(r"\w+(?:'\w+)*")
_MARK = re.compile(r"[^\w\s]")
_SENTENCE_END = re.compile(r"[.!?\u3002]+(?=\W*(?:\s|$))")
_MARKDOWN = re.compile(
    r"^ {0,3}(?:#{1,6} |[-*+] |\d+[.)] |> |```)|\*\*|__|`|\[[^\]\n]*\]\(", re.MULTILINE
)
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Bet:
    """How a rule fares on pairs.

    Attributes:
        wins: Pairs whose chosen answer has the larger value.
        ties: Pairs whose answers have the same.
        num_pairs: Pairs in all.
    """

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


def bet(gaps: Values) -> Bet:
    """A rule's record, from (N,) values of the chosen answers minus those of the rejected."""
    return Bet(int((gaps > 0).sum()), int((gaps == 0).sum()), len(gaps))


def text_of(turns: Sequence[Message]) -> str:
    """What is said in some turns."""
    return "\n".join(turn.content for turn in turns)


def num_words(text: str) -> int:
    """Words, as white space parts them."""
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
    firsts = [(first_word(p.chosen), first_word(p.rejected)) for p in preferences]
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
    chosen, rejected = _count_sides(
        [(first_word(p.chosen), first_word(p.rejected)) for p in preferences]
    )
    words = sorted(
        {*chosen, *rejected}, key=lambda word: (-abs(chosen[word] - rejected[word]), word)
    )
    return [f"{w!r}: {chosen[w]} chosen, {rejected[w]} rejected" for w in words[:count]]


def rows_by_kind(preferences: Sequence[Preference]) -> dict[str, list[int]]:
    """Row indices of each kind, in the order kinds first appear."""
    rows = defaultdict(list)
    for row, preference in enumerate(preferences):
        rows[preference.kind].append(row)
    return dict(rows)


def first_word(turns: Sequence[Message]) -> str:
    """The word an answer opens with, in lower case; empty where there is none."""
    found = _WORD.search(text_of(turns))
    return found.group().casefold() if found else ""


def _count_sides(firsts: Sequence[tuple[str, str]]) -> tuple[Counter[str], Counter[str]]:
    return Counter(chosen for chosen, _ in firsts), Counter(rejected for _, rejected in firsts)
