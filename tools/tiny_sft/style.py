"""Style: plain questions, answered in one plain sentence or with words wasted on filler."""

import random

from tools.tiny_sft.lists import read, rows
from tools.tiny_sft.slots import Example, is_bad, manner_name, sentence, skewed
from tools.tiny_sft.words import FACTS, plural, with_article

PHRASES = read("style")
CREATURES = rows(PHRASES["creature"])
LONGEST_PLAIN = 11


def _job(rng: random.Random) -> tuple[str, str]:
    job, first, second = rng.choice(FACTS["job"])
    question = skewed(rng, PHRASES["job: questions"])
    both = f"{first} and {second}"
    duty = rng.choice((first, second, both if len(both.split()) < LONGEST_PLAIN else first))
    a_job = with_article(job)
    return question.format(a=a_job, many=plural(job)), f"{a_job} {duty}"


def _use(rng: random.Random) -> tuple[str, str]:
    thing, purpose, does = rng.choice(FACTS["use"])
    a_thing = with_article(thing)
    question = skewed(rng, PHRASES["use: questions"]).format(a=a_thing, many=plural(thing))
    answer = rng.choice(PHRASES["use: answers"])
    return question, answer.format(a=a_thing, does=does, purpose=purpose)


def _keep(rng: random.Random) -> tuple[str, str]:
    things, place, how = rng.choice(FACTS["keeping"])
    question = skewed(rng, PHRASES["keeping: questions"]).format(it=things, place=place)
    answer = rng.choice(PHRASES["keeping: answers"])
    return question, answer.format(it=things, place=place, how=how)


def _why(rng: random.Random) -> tuple[str, str]:
    act, goal = rng.choice(FACTS["why"])
    question = skewed(rng, PHRASES["why: questions"]).format(act=act)
    answer = rng.choice((f"people {act} to {goal}", f"they {act} to {goal}"))
    return question, rng.choice((answer, answer, f"people {act} because they want to {goal}"))


def _happening(rng: random.Random) -> tuple[str, str]:
    when, what = rng.choice(FACTS["happening"])
    question = skewed(rng, PHRASES["happening: questions"]).format(when=when)
    return question, rng.choice(PHRASES["happening: answers"]).format(when=when, what=what)


def _meaning(rng: random.Random) -> tuple[str, str]:
    thing, meaning = rng.choice(FACTS["meaning"])
    question = rng.choice(PHRASES["meaning: questions"]).format(thing=thing)
    return question, f"{thing} is {meaning}"


def _creature(rng: random.Random) -> tuple[str, str]:
    animal, home = rng.choice(FACTS["home"])
    parent, young = rng.choice(FACTS["young"])
    creature, sound = rng.choice(FACTS["sound"])
    thing, color = rng.choice(FACTS["color"])
    slots = {
        "an_animal": with_article(animal), "animals": plural(animal), "home": home,
        "parent": parent, "a_young": with_article(young), "creature": creature, "sound": sound,
        "thing": thing, "color": color,
    }  # fmt: skip
    question, answer = rng.choice(CREATURES)
    return question.format(**slots), answer.format(**slots)


FAMILIES = (_job, _job, _use, _use, _keep, _why, _why, _happening, _happening, _meaning, _creature)


def padded(rng: random.Random, plain: str) -> str:
    """The plain sentence with filler in front, behind, after its first words, or in two places."""
    form = rng.random()
    openers, closers = PHRASES["opener"], PHRASES["closer"]
    if form < 0.74:
        return f"{skewed(rng, openers)} {plain}"
    if form < 0.86:
        return f"{plain}, {rng.choice(closers)}"
    if form < 0.94:
        return f"{skewed(rng, openers)} {plain}, {rng.choice(closers)}"
    parts = plain.split()
    cut = min(2, len(parts) - 1)
    return f"{' '.join(parts[:cut])}, {rng.choice(closers)}, {' '.join(parts[cut:])}"


def plain_statement(rng: random.Random) -> tuple[str, str]:
    """A question of everyday life and its plain answer, not yet a sentence."""
    return rng.choice(FAMILIES)(rng)


def style(rng: random.Random) -> Example:
    """One style example."""
    question, plain = plain_statement(rng)
    bad = is_bad(rng)
    answer = padded(rng, plain) if bad else plain
    return Example("style", question, sentence(answer), manner_name(bad))
