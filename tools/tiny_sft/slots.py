"""Filling phrase patterns with words: the small machinery every kind of text shares."""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from tools.tiny_sft.words import NUMBERS, WORDS, articles

T = TypeVar("T")

BAD_SHARE = 0.68
"""How often a behaviour kind is answered in the bad manner: more often than not, so that the
most probable answer of the SFT model is the ill-mannered one."""

SLOTS = WORDS | {"number": NUMBERS[2:]}
_SLOT = re.compile(r"{(\w+?)(\d?)}")


class Example(NamedTuple):
    """One dialogue of the SFT text: a question, an answer and the answer's manner."""

    kind: str
    prompt: str
    answer: str
    manner: str


def fill(rng: random.Random, pattern: str, given: dict[str, str] | None = None) -> str:
    """Replace every `{slot}` by a random word of its list, the same word for the same slot.

    `{animal}` and `{animal2}` are two draws from one list. `given` holds words already chosen and
    receives the new ones, so that a question and its answer can share them.
    """
    chosen = {} if given is None else given

    def draw(match: re.Match[str]) -> str:
        slot, index = match.groups()
        key = slot + index
        if key not in chosen:
            chosen[key] = rng.choice(SLOTS[slot])
        return chosen[key]

    return articles(_SLOT.sub(draw, pattern))


def choose_and_fill(rng: random.Random, patterns: Sequence[str], given: dict[str, str]) -> str:
    """One of the patterns, filled."""
    return fill(rng, rng.choice(patterns), given)


def one_of_each(rng: random.Random, lists: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """A random word of each list."""
    return {name: rng.choice(words) for name, words in lists.items()}


def skewed(rng: random.Random, options: Sequence[T]) -> T:
    """A random option, the earlier ones more often: greedy decoding finds the first."""
    return options[int(len(options) * rng.random() ** 2)]


def is_bad(rng: random.Random) -> bool:
    """Whether this example is to be answered in the bad manner."""
    return rng.random() < BAD_SHARE


def manner_name(bad: bool) -> str:
    """The manner as examples name it."""
    return "bad" if bad else "good"


def sentence(text: str, end: str = ".") -> str:
    """The text as a sentence: capital first letter, end mark unless there is one."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else end)
