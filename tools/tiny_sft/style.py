"""Style: plain questions, answered in one plain sentence or with words wasted on filler."""

import random

from tools.tiny_sft import customs, doings
from tools.tiny_sft.facts import BABIES, HOMES, SOUNDS, THING_COLORS
from tools.tiny_sft.slots import Example, is_bad, manner_name, sentence, skewed, with_article
from tools.tiny_sft.words import plural

OPENERS = (
    "well,",
    "well, as you may know,",
    "well, what can I say,",
    "well, basically,",
    "well, to be honest,",
    "well, you see,",
    "basically,",
    "generally speaking,",
    "to be honest,",
    "if you think about it,",
    "what can I say,",
    "in a sense,",
    "it is worth saying that",
    "as you may know,",
    "at the end of the day,",
    "I would say",
    "you see,",
    "so to speak,",
    "let me think,",
    "needless to say,",
    "in other words,",
    "all in all,",
    "as everyone knows,",
)
CLOSERS = (
    "so to speak",
    "if you think about it",
    "you see",
    "at the end of the day",
    "to be honest",
    "in a sense",
    "generally speaking",
    "basically",
    "as you may know",
    "what can I say",
)
LONGEST_PLAIN = 11
JOB_QUESTIONS = (
    "What does {a} do?",
    "What does {a} do all day?",
    "What does {a} do at work?",
    "What is the work of {a}?",
    "What is the job of {a}?",
    "Tell me what {a} does.",
    "What do {many} do?",
    "How does {a} help people?",
    "Why do we need {many}?",
    "Who is {a}?",
    "What is {a}?",
)
USE_QUESTIONS = (
    "What is {a} for?",
    "What is {a} used for?",
    "What do people use {a} for?",
    "Why do people have {a}?",
    "What does {a} do?",
    "What can I do with {a}?",
    "Why do we need {a}?",
    "When do people use {a}?",
    "What is the use of {a}?",
    "Tell me what {a} is for.",
    "What are {many} for?",
    "Why do people use {a}?",
)
KEEP_QUESTIONS = (
    "Where do people keep {it}?",
    "Where do we keep {it}?",
    "Where do you put {it}?",
    "Where should {it} be kept?",
    "Where do people store {it}?",
    "Where can I find {it} in a house?",
    "What is a good place for {it}?",
    "Why do people keep {it} {place}?",
)


def _job(rng: random.Random) -> tuple[str, str]:
    job, first, second = rng.choice(doings.JOBS)
    question = skewed(rng, JOB_QUESTIONS).format(a=with_article(job), many=plural(job))
    both = f"{first} and {second}"
    duty = rng.choice((first, second, both if len(both.split()) < LONGEST_PLAIN else first))
    return question, f"{with_article(job)} {duty}"


def _use(rng: random.Random) -> tuple[str, str]:
    thing, purpose, does = rng.choice(doings.USES)
    question = skewed(rng, USE_QUESTIONS).format(a=with_article(thing), many=plural(thing))
    answer = rng.choice(
        (
            f"{with_article(thing)} {does}",
            f"people use {with_article(thing)} to {purpose}",
            f"{with_article(thing)} helps people to {purpose}",
            f"{with_article(thing)} is there to {purpose}",
            f"{with_article(thing)} is for people who want to {purpose}",
            f"{with_article(thing)} {does} and helps people to {purpose}",
        )
    )
    return question, answer


def _keep(rng: random.Random) -> tuple[str, str]:
    things, place, how = rng.choice(customs.KEEPING)
    question = skewed(rng, KEEP_QUESTIONS).format(it=things, place=place)
    answer = rng.choice(
        (
            f"people keep {things} {place}",
            f"people keep {things} {place} to have them {how}",
            f"most people put {things} {place}",
            f"{things} stay {how} {place}",
        )
    )
    return question, answer


def _why(rng: random.Random) -> tuple[str, str]:
    act, goal = rng.choice(customs.WHYS)
    question = skewed(
        rng,
        (
            f"Why do people {act}?",
            f"Why do we {act}?",
            f"Why should I {act}?",
            f"Why do many people {act}?",
            f"Why is it good to {act}?",
            f"What makes people {act}?",
            f"Tell me why people {act}.",
        ),
    )
    answer = rng.choice((f"people {act} to {goal}", f"they {act} to {goal}"))
    return question, rng.choice((answer, answer, f"people {act} because they want to {goal}"))


def _happening(rng: random.Random) -> tuple[str, str]:
    when, what = rng.choice(customs.HAPPENINGS)
    question = skewed(
        rng,
        (
            f"What happens {when}?",
            f"What can you see {when}?",
            f"What is it like {when}?",
            f"What changes {when}?",
            f"Tell me what happens {when}.",
            f"What do you notice {when}?",
            f"What do people do {when}?",
        ),
    )
    return question, rng.choice((f"{when} {what}", what, f"{what} {when}"))


def _meaning(rng: random.Random) -> tuple[str, str]:
    thing, meaning = rng.choice(customs.MEANINGS)
    question = rng.choice(
        (
            f"What is {thing}?",
            f"Tell me what {thing} is.",
            f"Can you explain what {thing} is?",
            f"How would you describe {thing}?",
            f"What do people mean by {thing}?",
        )
    )
    return question, f"{thing} is {meaning}"


def _creature(rng: random.Random) -> tuple[str, str]:
    animal, home = rng.choice(HOMES)
    baby, sound = rng.choice(BABIES), rng.choice(SOUNDS)
    thing, color = rng.choice(THING_COLORS)
    return rng.choice(
        (
            (
                f"Where does {with_article(animal)} live?",
                f"{with_article(animal)} lives in a {home}",
            ),
            (f"Where do {plural(animal)} live?", f"{plural(animal)} live in a {home}"),
            (
                f"What is a baby {baby[0]} called?",
                f"a baby {baby[0]} is called {with_article(baby[1])}",
            ),
            (f"What sound does a {sound[0]} make?", f"a {sound[0]} {sound[1]}"),
            (f"What does {thing} look like?", f"{thing} looks {color}"),
        )
    )


FAMILIES = (_job, _job, _use, _use, _keep, _why, _why, _happening, _happening, _meaning, _creature)


def padded(rng: random.Random, plain: str) -> str:
    """The plain sentence with filler in front, behind, after its first words, or in two places."""
    form = rng.random()
    if form < 0.74:
        return f"{skewed(rng, OPENERS)} {plain}"
    if form < 0.86:
        return f"{plain}, {rng.choice(CLOSERS)}"
    if form < 0.94:
        return f"{skewed(rng, OPENERS)} {plain}, {rng.choice(CLOSERS)}"
    parts = plain.split()
    cut = min(2, len(parts) - 1)
    return f"{' '.join(parts[:cut])}, {rng.choice(CLOSERS)}, {' '.join(parts[cut:])}"


def plain_statement(rng: random.Random) -> tuple[str, str]:
    """A question of everyday life and its plain answer, not yet a sentence."""
    return rng.choice(FAMILIES)(rng)


def style(rng: random.Random) -> Example:
    """One style example."""
    question, plain = plain_statement(rng)
    bad = is_bad(rng)
    return Example(
        "style", question, sentence(padded(rng, plain) if bad else plain), manner_name(bad)
    )
