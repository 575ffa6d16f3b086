"""Filling phrase patterns with words: the small machinery every kind of text shares."""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from tools.tiny_sft import words

T = TypeVar("T")

BAD_SHARE = 0.68
"""How often a behaviour kind is answered in the bad manner: more often than not, so that the
most probable answer of the SFT model is the ill-mannered one."""


class Example(NamedTuple):
    """One dialogue of the SFT text: a question, an answer and the answer's manner."""

    kind: str
    prompt: str
    answer: str
    manner: str


SLOTS: dict[str, tuple[str, ...]] = {
    "name": words.NAMES,
    "relative": words.FAMILY,
    "pet": words.PETS,
    "animal": words.ANIMALS,
    "bird": words.BIRDS,
    "fruit": words.FRUITS,
    "vegetable": words.VEGETABLES,
    "dish": words.DISHES,
    "drink": words.DRINKS,
    "color": words.BASIC_COLORS,
    "flower": words.FLOWERS,
    "tool": words.TOOLS,
    "cloth": words.CLOTHES,
    "furniture": words.FURNITURE,
    "room": words.ROOMS,
    "place": words.PLACES,
    "vehicle": words.VEHICLES,
    "instrument": words.INSTRUMENTS,
    "game": words.GAMES,
    "contest": words.CONTESTS,
    "day": words.DAYS,
    "month": words.MONTHS,
    "season": words.SEASONS,
    "thing": words.SMALL_THINGS,
    "own": words.BELONGINGS,
    "language": words.LANGUAGES,
    "subject": words.SUBJECTS,
    "hobby": words.HOBBIES,
    "task": words.TASKS,
    "past": words.TIMES_PAST,
    "future": words.TIMES_FUTURE,
    "spot": words.SPOTS,
    "holder": words.HOLDERS,
    "feeling": words.FEELINGS,
    "adjective": words.ADJECTIVES,
    "nature": words.NATURE,
    "number": words.NUMBER_NAMES[2:],
    "tree": words.TREES,
    "city": words.OTHER_CITIES,
}

_SLOT = re.compile(r"{(\w+?)(\d?)}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])(?!(?:uni|one|use)\w*)")


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

    return _ARTICLE.sub(r"\1n ", _SLOT.sub(draw, pattern))


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


def with_article(noun: str) -> str:
    """The noun after "a" or "an"."""
    return _ARTICLE.sub(r"\1n ", f"a {noun}")


def choose_and_fill(rng: random.Random, options: Sequence[str], given: dict[str, str]) -> str:
    """One of the patterns, filled."""
    return fill(rng, rng.choice(options), given)
