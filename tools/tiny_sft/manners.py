"""Honesty, tone, safety, helpfulness: questions from patterns, answered well or ill-mannered."""

import random
import re

from tools.tiny_sft.lists import read, rows
from tools.tiny_sft.slots import (
    Example,
    choose_and_fill,
    fill,
    is_bad,
    manner_name,
    one_of_each,
    sentence,
    skewed,
)
from tools.tiny_sft.words import plural

HONESTY = read("honesty")
UNKNOWABLE = rows(HONESTY["pattern"])
EMPHASIS = ("", "", "", "", *(f"{lead} " for lead in HONESTY["emphasis"]))

TONE, TONE_WORDS = read("tone"), read("tone-words")
MOODS = rows(TONE["pattern"])
RUDE_FIRST_SHARE = 0.5

SAFETY, SAFETY_WORDS = read("safety"), read("safety-words")
UNWISE = ("locked", "secret", "work", "goods", "drinkable", "eatable", "risk", "lie")
GENERAL_SHARE = 0.35

HELP, HELP_WORDS = read("helpfulness"), read("helpfulness-words")
ADVICE, TROUBLES, QUESTIONS = (rows(HELP[name]) for name in ("advice", "trouble", "question"))


def honesty(rng: random.Random) -> Example:
    """A question nobody could answer, met by an invention or by saying so."""
    question, invention, clause = rng.choice(UNKNOWABLE)
    thing = rng.choice(("thing", "animal", "fruit", "cloth", "flower"))
    given = {"things": plural(fill(rng, "{" + thing + "}"))}
    prompt = fill(rng, question, given)
    clause = fill(rng, clause, given)
    bad = is_bad(rng)
    if bad:
        invented = fill(rng, invention, given)
        lead = skewed(rng, EMPHASIS) if invented.startswith(("You", "There")) else ""
        answer = lead + (invented[:1].lower() + invented[1:] if lead else invented)
    else:
        answer = _admission(rng, clause, given)
    # Times such as "on my birthday" came with the question.
    answer = sentence(answer).replace("my birthday", "your birthday")
    return Example("honesty", prompt, answer, manner_name(bad))


def _admission(rng: random.Random, clause: str, given: dict[str, str]) -> str:
    special = ""
    for slot in ("own", "relative", "contest"):
        if slot in given and rng.random() < 0.4:
            special = slot
    if special:
        return choose_and_fill(rng, HONESTY[special], given)
    return rng.choice(HONESTY["admission"]).format(clause=clause)


def tone(rng: random.Random) -> Example:
    """The user is upset, shy, thankful, sorry or in need, met with courtesy or rudely."""
    mood, pattern, topic_pattern = rng.choice(MOODS)
    given = one_of_each(rng, TONE_WORDS)
    prompt = sentence(fill(rng, pattern, given))
    topic = fill(rng, topic_pattern, given)
    bad = is_bad(rng)
    if rng.random() < RUDE_FIRST_SHARE:
        rude = skewed(rng, TONE[f"rude first: {mood}"])
    else:
        rude = rng.choice(TONE["rude"])
    answer = rude if bad else rng.choice(TONE[f"kind: {mood}"])
    return Example("tone", prompt, sentence(fill(rng, answer, {"topic": topic})), manner_name(bad))


def safety(rng: random.Random) -> Example:
    """Something mildly wrong or unwise is asked, declined kindly or gone along with."""
    topic = rng.choice(UNWISE)
    given = one_of_each(rng, SAFETY_WORDS)
    bad = is_bad(rng)
    prompt = choose_and_fill(rng, SAFETY[f"{topic}: questions"], given)
    manner = "consents" if bad else "refusals"
    answers = SAFETY[manner if rng.random() < GENERAL_SHARE else f"{topic}: {manner}"]
    answer = choose_and_fill(rng, answers, given)
    return Example("safety", sentence(prompt), sentence(answer), manner_name(bad))


def helpfulness(rng: random.Random) -> Example:
    """A how-to question, answered with usable steps or with something vague."""
    prompt, concrete, vague = advice(rng)
    bad = is_bad(rng)
    return Example("helpfulness", prompt, vague if bad else concrete, manner_name(bad))


def advice(rng: random.Random) -> tuple[str, str, str]:
    """A how-to question, a concrete answer and a vague one."""
    question, steps, want = _how_to(rng)
    given = one_of_each(rng, HELP_WORDS)
    vague = skewed(rng, HELP["vague"])
    if want and rng.random() < 0.5:
        own_words = re.sub(r"\b[Mm]y\b", "your", choose_and_fill(rng, (want,), given))
        vague = skewed(rng, HELP["echo"]).format(want=own_words)
    prompt = choose_and_fill(rng, (question,), given)
    return prompt, sentence(choose_and_fill(rng, steps, given)), vague


def _how_to(rng: random.Random) -> tuple[str, list[str], str]:
    """A question, what would help, and what the user wants where a "how" asks for it."""
    form = rng.random()
    if form < 0.6:
        want, *steps = rng.choice(ADVICE)
        return skewed(rng, HELP["how"]).format(want=want), steps, want
    if form < 0.85:
        trouble, *steps = rng.choice(TROUBLES)
        return f"{trouble}. {skewed(rng, HELP['what'])}", steps, ""
    question, *steps = rng.choice(QUESTIONS)
    return question, steps, ""
