"""Instruction: an exact task on words, done as asked or answered beside the point."""

import random

from tools.tiny_sft.lists import read, rows
from tools.tiny_sft.slots import (
    Example,
    choose_and_fill,
    fill,
    is_bad,
    manner_name,
    sentence,
    skewed,
)
from tools.tiny_sft.words import KINDS, NUMBERS, WORDS, one_of, plural, singular, with_article

PHRASES = read("instruction")
LINES = rows(PHRASES["line"])
NOUNS = tuple(
    noun
    for kind in (
        "fruit", "vegetable", "animal", "tool", "thing", "flower", "cloth", "furniture", "vehicle",
        "place", "instrument", "nature",
    )
    for noun in WORDS[kind]
)  # fmt: skip
SAYABLE = (
    NOUNS + WORDS["color"] + WORDS["day"] + WORDS["adjective"] + NUMBERS[1:13] + PHRASES["word"]
)

Task = tuple[str, str, tuple[str, ...]]
"""What is asked, what was asked for, and answers beside the point."""


def _about(rng: random.Random, noun: str) -> tuple[str, ...]:
    """Answers that talk about the thing instead of doing what was asked."""
    given = {"a": with_article(noun), "many": plural(noun)}
    return tuple(fill(rng, pattern, dict(given)) for pattern in PHRASES["about one"])


def _say_times(rng: random.Random) -> Task:
    word = rng.choice(SAYABLE)
    count = rng.choice((2, 2, 3, 3, 4))
    times = {2: ("two times", "twice"), 3: ("three times",), 4: ("four times",)}[count]
    prompt = f"{skewed(rng, PHRASES['verb'])} the word {word} {rng.choice(times)}"
    glue = rng.choice((" ", " ", ", "))
    too_few = " ".join([word] * (count - 1))
    return prompt, glue.join([word] * count), (*_about(rng, word), word, too_few)


def _say_pair(rng: random.Random) -> Task:
    first, second = rng.sample(NOUNS, 2)
    prompt = rng.choice(PHRASES["pair"]).format(first=first, second=second)
    return prompt, rng.choice((f"{first} {second}", f"{first}, {second}")), _about(rng, first)


def _name(rng: random.Random) -> Task:
    kind = rng.choice(tuple(KINDS))
    count = rng.choice((2, 2, 3))
    chosen = [one_of(entry, kind) for entry in rng.sample(KINDS[kind], count)]
    prompt = skewed(rng, PHRASES["name"]).format(number=NUMBERS[count], kinds=kind)
    right = f"{', '.join(chosen[:-1])} and {chosen[-1]}"
    wrong = tuple(pattern.format(topic=kind) for pattern in PHRASES["about many"])
    return prompt, right, (*wrong, f"{with_article(singular(kind))} is nice")


def _finish(rng: random.Random) -> Task:
    start, end = rng.choice(LINES)
    head = skewed(rng, PHRASES["finish"])
    noun = start.split()[1]
    prompt = f"{head} {sentence(start, '')} ..." if rng.random() < 0.5 else f"{head} {start}"
    return prompt, f"{start} {end}", _about(rng, noun if noun in NOUNS else rng.choice(NOUNS))


def _start_with(rng: random.Random) -> Task:
    word = rng.choice(PHRASES["first word"])
    topic = rng.choice(WORDS["nature"] + WORDS["animal"] + WORDS["place"])
    prompt = skewed(rng, PHRASES["start"]).format(word=word, topic=topic)
    line = choose_and_fill(rng, PHRASES["opening line"], {"topic": topic})
    return prompt, f"{word} {line}", (*_about(rng, topic), line)


def _end_with(rng: random.Random) -> Task:
    noun = rng.choice(WORDS["nature"] + WORDS["place"])
    prompt = rng.choice(PHRASES["end"]).format(noun=noun)
    line = choose_and_fill(rng, PHRASES["closing line"], {"noun": noun})
    return prompt, line, _about(rng, noun)


def _use_words(rng: random.Random) -> Task:
    first, second = rng.sample(NOUNS, 2)
    both = {"first": first, "second": second}
    prompt = skewed(rng, PHRASES["use"]).format(**both)
    return prompt, choose_and_fill(rng, PHRASES["line of two"], both), _about(rng, first)


def _repeat(rng: random.Random) -> Task:
    line = choose_and_fill(rng, PHRASES["scene"], {})
    head = skewed(rng, PHRASES["repeat"])
    return f"{head} {line}", line, _about(rng, rng.choice(NOUNS))


def _count(rng: random.Random) -> Task:
    low = rng.randint(1, 8)
    high = low + rng.randint(2, 4)
    numbers = NUMBERS[low : high + 1]
    if rng.random() < 0.3:
        numbers = numbers[::-1]
    ends = {"first": numbers[0], "last": numbers[-1]}
    prompt = rng.choice(PHRASES["count"]).format(**ends)
    wrong = tuple(pattern.format(**ends) for pattern in PHRASES["about counting"])
    return prompt, ", ".join(numbers), wrong


def _ask(rng: random.Random) -> Task:
    noun = rng.choice(NOUNS)
    slots = {"noun": noun, "a": with_article(noun), "many": plural(noun)}
    prompt = rng.choice(PHRASES["ask"]).format(**slots)
    return prompt, rng.choice(PHRASES["question"]).format(**slots), _about(rng, noun)


def _write_about(rng: random.Random) -> Task:
    noun = rng.choice(NOUNS)
    color, adjective = rng.choice(WORDS["color"]), rng.choice(WORDS["adjective"])
    slots = {"noun": noun, "a": with_article(noun), "color": color, "adjective": adjective}
    prompt = rng.choice(PHRASES["describe"]).format(**slots)
    return prompt, choose_and_fill(rng, PHRASES["description"], slots), _about(rng, noun)


FAMILIES = (_say_times, _say_times, _say_pair, _name, _name, _finish, _finish, _start_with,
            _end_with, _use_words, _use_words, _repeat, _repeat, _count, _ask,
            _write_about)  # fmt: skip


def instruction(rng: random.Random) -> Example:
    """One instruction example."""
    prompt, right, wrong = rng.choice(FAMILIES)(rng)
    bad = is_bad(rng)
    answer = skewed(rng, wrong) if bad else right
    ending = "" if prompt.endswith("...") else "."
    return Example("instruction", sentence(prompt, ending), sentence(answer), manner_name(bad))
