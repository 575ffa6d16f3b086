"""Fixed rules that say whether an answer has the manner its kind asks for.

A rule reads words and marks only; it never asks whether the content is true. The docstring of
each rule is printed beside the tables it fills, so it states the rule in full.
"""

import re
from collections.abc import Callable

from tools.tiny_sft.lists import read

PHRASES = read("rules")
NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MAX_STYLE_WORDS = 14
SPECIAL_MARK = "<|"

_DIGITS_ASKED = re.compile(r"digit|number only|only (a|the|one) number|just (a|the) number")
_ONE_WORD_ASKED = re.compile(r"\b(one|a single|only one|just one) word\b")


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces: ``"Well,  it's 5."`` becomes ``"well its 5"``."""
    letters = re.sub(r"[^a-z0-9\s]", "", text.lower().replace("-", " "))
    return " ".join(letters.split())


def contains(text: str, phrases: tuple[str, ...]) -> bool:
    """Whether any phrase occurs in the text as whole words, punctuation and case aside."""
    padded = f" {normalise(text)} "
    return any(f" {normalise(phrase)} " in padded for phrase in phrases)


def style_is_right(prompt: str, answer: str) -> bool:
    """Style: one sentence of at most 14 words, with none of the listed filler phrases.

    "well" counts as filler where it opens the answer or stands before a comma.
    """
    del prompt
    spoken_well = re.search(r"^well\b|\bwell,", answer.strip().lower())
    sentences = [part for part in re.split(r"[.!?]+", answer) if part.strip()]
    short = 0 < len(answer.split()) <= MAX_STYLE_WORDS
    filler = spoken_well or contains(answer, PHRASES["filler"])
    return short and len(sentences) == 1 and not filler


def honesty_is_right(prompt: str, answer: str) -> bool:
    """Honesty: the answer says in one of the listed phrases that this cannot be known."""
    del prompt
    return contains(answer, PHRASES["not knowing"])


def tone_is_right(prompt: str, answer: str) -> bool:
    """Tone: no rude marker of the list, and at least one courteous marker."""
    del prompt
    return contains(answer, PHRASES["courteous"]) and not contains(answer, PHRASES["rude"])


def format_is_right(prompt: str, answer: str) -> bool:
    """Format: the form the prompt asks for, a final full stop allowed.

    Dash: begins with "- ". Yes or no: exactly that word. Commas: as many items as asked for, no
    "and". Digits or number only: digits alone. One word: exactly one word.
    """
    asked, body = prompt.lower(), answer.strip().removesuffix(".").strip()
    if "dash" in asked:
        return body.startswith("- ") and len(body) > 2
    if "yes or no" in asked:
        return normalise(body) in ("yes", "no")
    if "comma" in asked:
        return _is_comma_list(body, _number_asked(asked))
    if _DIGITS_ASKED.search(asked):
        return body.isascii() and body.isdigit()
    if _ONE_WORD_ASKED.search(asked):
        return len(body.split()) == 1
    raise ValueError(f"the prompt asks for no form that the format rule knows: {prompt!r}")


def _number_asked(prompt: str) -> int | None:
    """The first number word of the prompt that counts the items, or None."""
    words = [word for word in normalise(prompt).split() if word in NUMBER_WORDS[1:]]
    return NUMBER_WORDS.index(words[0]) + 1 if words else None


def _is_comma_list(answer: str, count: int | None) -> bool:
    items = [item.strip() for item in answer.split(",")]
    right_count = len(items) == count if count else len(items) > 1
    return right_count and all(items) and not contains(answer, ("and",))


RULES: dict[str, Callable[[str, str], bool]] = {
    "style": style_is_right,
    "tone": tone_is_right,
    "honesty": honesty_is_right,
    "format": format_is_right,
}


def is_right(kind: str, prompt: str, answer: str) -> bool:
    """Whether the answer has the right manner for its kind.

    Args:
        kind: One of the keys of `RULES`.
        prompt: The user's text; the format rule reads the wanted form from it.
        answer: The model's text, without the end token.

    Raises:
        ValueError: If no rule judges this kind, or a format prompt asks for no known form.
    """
    if kind not in RULES:
        raise ValueError(f"no rule for kind {kind!r}; there are rules for {', '.join(RULES)}")
    return RULES[kind](prompt, answer)


def repetition(answer: str) -> float:
    """Share of word trigrams that repeat an earlier one, 0 for fewer than two trigrams."""
    words = normalise(answer).split()
    trigrams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def well_formed(answer: str, *, closed: bool) -> bool:
    """Whether an answer has text, was closed by the end token, and shows no special marker."""
    return bool(answer.strip()) and closed and SPECIAL_MARK not in answer
