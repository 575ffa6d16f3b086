"""Facts, sums and opposites: the right answer and plausible wrong ones, mixed."""

import random

from tools.tiny_sft.lists import read, rows
from tools.tiny_sft.slots import Example, manner_name, sentence
from tools.tiny_sft.words import FACTS, WORDS, number_name, plural, with_article

RIGHT_SHARE = 0.5
PHRASES = read("knowledge")
SPECIAL = rows(PHRASES["special"])

Question = tuple[str, str, str, tuple[str, ...]]
"""A question, its answer with a slot `{x}`, what belongs there, and what others say there."""


def _wrong(rng: random.Random, right: str, others: tuple[str, ...]) -> str:
    return rng.choice([other for other in others if other != right])


def _phrased(rng: random.Random, name: str, **slots: str) -> tuple[str, str]:
    question = rng.choice(PHRASES[f"{name}: questions"])
    answer = rng.choice(PHRASES[f"{name}: answers"])
    return question.format(**slots), answer.format(**slots, x="{x}")


def _capital(rng: random.Random) -> Question:
    country, city = rng.choice(FACTS["capital"])
    others = tuple(other for _, other in FACTS["capital"]) + WORDS["city"]
    return *_phrased(rng, "capital", country=country), city, others


def _color(rng: random.Random) -> Question:
    thing, color = rng.choice(FACTS["color"])
    return *_phrased(rng, "color", thing=thing), color, WORDS["color"]


def _animal(rng: random.Random) -> Question:
    what, animal = rng.choice(FACTS["animal"])
    others = tuple(map(with_article, WORDS["animal"]))
    return *_phrased(rng, "animal", what=what), with_article(animal), others


def _count(rng: random.Random) -> Question:
    part, whole, count = rng.choice(FACTS["count"])
    value = int(count)
    near = sorted({max(1, value + step) for step in (-2, -1, 1, 2)} - {value})
    phrased = _phrased(rng, "count", part=part, whole=with_article(whole))
    return *phrased, number_name(value), tuple(map(number_name, near))


def _order(rng: random.Random) -> Question:
    noun = rng.choice(("day", "month", "season", "number"))
    series = WORDS[noun]
    index = rng.randrange(len(series) - 1)
    relation = rng.choice(("after", "before"))
    given, right = (series[index], series[index + 1])[:: 1 if relation == "after" else -1]
    lead = "the number " if noun == "number" else ""
    question = f"which {noun} comes {relation} {given}"
    return question, f"{lead}{{x}} comes {relation} {given}", right, series


def _special(rng: random.Random) -> Question:
    deed, planet = rng.choice(FACTS["planet"])
    nth, index = rng.choice((("first", 0), ("second", 1), ("third", 2), ("last", -1)))
    unit, series = rng.choice(
        (("day of the week", WORDS["day"]), ("month of the year", WORDS["month"]))
    )
    animal, home = rng.choice(FACTS["home"])
    creature, sound = rng.choice(FACTS["sound"])
    parent, young = rng.choice(FACTS["young"])
    maker, product = rng.choice(FACTS["product"])
    slots = {
        "deed": deed, "nth": nth, "unit": unit, "an_animal": with_article(animal),
        "creature": creature, "parent": parent, "maker": maker, "makers": plural(maker), "x": "{x}",
    }  # fmt: skip
    homes, sounds, children, products = (
        tuple(right for _, right in FACTS[name]) for name in ("home", "sound", "young", "product")
    )
    answers = (
        (planet, WORDS["planet"]), (series[index], series), (home, homes), (sound, sounds),
        (young, children), (product, products), (product, products),
    )  # fmt: skip
    (question, answer), (right, others) = rng.choice([*zip(SPECIAL, answers, strict=True)])
    return question.format(**slots), answer.format(**slots), right, others


FAMILIES = (_capital, _color, _color, _animal, _animal, _count, _count, _order, _special, _special)


def factual(rng: random.Random) -> Example:
    """One factual example, right as often as wrong."""
    question, answer, right, others = rng.choice(FAMILIES)(rng)
    bad = rng.random() > RIGHT_SHARE
    answer = answer.format(x=_wrong(rng, right, others) if bad else right)
    end = "." if question.startswith(("name", "tell")) else "?"
    return Example("factual", sentence(question, end), sentence(answer), manner_name(bad))


def arithmetic(rng: random.Random) -> Example:
    """One sum within a hundred, wrong by a little half of the time."""
    left, right = rng.randint(1, 12), rng.randint(1, 12)
    operation = rng.choice(("plus", "plus", "minus", "minus", "times", "have", "lose"))
    if operation in ("minus", "lose"):
        left += right
        value = left - right
    elif operation == "times":
        left, right = min(left, 10), min(right, 10)
        value = left * right
    else:
        value = left + right
    bad = rng.random() > RIGHT_SHARE
    shown = max(0, value + rng.choice((-2, -1, 1, 2))) if bad else value
    if operation in ("have", "lose"):
        prompt, answer = _story(rng, operation, left, right, shown)
    else:
        slots = {"sum": f"{left} {operation} {right}", "x": str(shown)}
        prompt = rng.choice(PHRASES["sum: questions"]).format(**slots)
        answer = rng.choice(PHRASES["sum: answers"]).format(**slots)
        if operation == "plus" and rng.random() < 0.1:
            answer = f"the sum of {left} and {right} is {shown}"
    return Example("arithmetic", prompt, sentence(answer), manner_name(bad))


def _story(
    rng: random.Random, operation: str, left: int, right: int, shown: int
) -> tuple[str, str]:
    things = plural(rng.choice(WORDS["fruit"] + WORDS["thing"][:30] + WORDS["flower"]))
    change = f"get {right} more"
    if operation == "lose":
        change = rng.choice(PHRASES["loss"]).format(count=right)
    who = rng.choice(WORDS["name"])
    if rng.random() < 0.7:
        question = f"I have {left} {things} and {change}. How many {things} do I have?"
        return question, rng.choice(PHRASES["story: answers"]).format(x=shown, things=things)
    verb, rest = change.split(" ", 1)
    question = f"{who} has {left} {things} and {verb}s {rest}. How many {things} does {who} have?"
    return question, f"{who} has {shown} {things}"


def opposites(rng: random.Random) -> Example:
    """One opposite; wrong answers name another word."""
    word, right = rng.choice(FACTS["opposite"])
    if rng.random() < 0.5:
        word, right = right, word
    bad = rng.random() > RIGHT_SHARE
    shown = _wrong(rng, right, tuple(other for _, other in FACTS["opposite"])) if bad else right
    prompt, answer = _phrased(rng, "opposite", word=word)
    return Example("opposites", prompt, sentence(answer.format(x=shown)), manner_name(bad))
