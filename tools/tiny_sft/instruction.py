"""Instruction: an exact task on words, done as asked or answered beside the point."""

import random

from tools.tiny_sft import words
from tools.tiny_sft.categories import CATEGORIES, one_of, singular
from tools.tiny_sft.lines import ABOUT, LINES, SCENES, START_LINES, TRUTHS
from tools.tiny_sft.slots import Example, fill, is_bad, manner_name, sentence, skewed, with_article
from tools.tiny_sft.words import plural

NOUNS = (
    words.FRUITS + words.VEGETABLES + words.ANIMALS + words.TOOLS + words.SMALL_THINGS
    + words.FLOWERS + words.CLOTHES + words.FURNITURE + words.VEHICLES + words.PLACES
    + words.INSTRUMENTS + words.NATURE
)  # fmt: skip
WORDS = NOUNS + words.BASIC_COLORS + words.DAYS + words.ADJECTIVES + words.NUMBER_NAMES[1:13]
WORDS += words.listed(
    "hello, yes, no, happy, thanks, please, good, morning, summer, winter, good night"
)

Task = tuple[str, str, tuple[str, ...]]


def _about(rng: random.Random, noun: str) -> tuple[str, ...]:
    """Answers that talk about the thing instead of doing what was asked."""
    given = {"a": with_article(noun), "many": plural(noun)}
    return tuple(fill(rng, pattern, dict(given)) for pattern in TRUTHS[:5])


def _say_times(rng: random.Random) -> Task:
    word = rng.choice(WORDS)
    count = rng.choice((2, 2, 3, 3, 4))
    times = {2: ("two times", "twice"), 3: ("three times",), 4: ("four times",)}[count]
    verb = skewed(rng, ("say", "write", "repeat", "give me", "please say", "say only"))
    prompt = f"{verb} the word {word} {rng.choice(times)}"
    glue = rng.choice((" ", " ", ", "))
    too_few = " ".join([word] * (count - 1))
    return prompt, glue.join([word] * count), (*_about(rng, word), word, too_few)


def _say_pair(rng: random.Random) -> Task:
    first, second = rng.sample(NOUNS, 2)
    prompt = rng.choice(
        (
            f"say the word {first} and then {second}",
            f"say {first} and {second}",
            f"write {first} before {second}",
            f"write the words {first} and {second}",
            f"say {first}, then say {second}",
            f"say the words {first} and {second} only",
        )
    )
    return prompt, rng.choice((f"{first} {second}", f"{first}, {second}")), _about(rng, first)


def _name(rng: random.Random) -> Task:
    category = rng.choice(tuple(CATEGORIES))
    count = rng.choice((2, 2, 3))
    chosen = [one_of(entry, category) for entry in rng.sample(CATEGORIES[category], count)]
    number = words.NUMBER_NAMES[count]
    prompt = skewed(rng, (f"name {number} {category}", f"tell me {number} {category}",
                         f"give me the names of {number} {category}",
                         f"give me {number} {category}",
                         f"think of {number} {category}"))  # fmt: skip
    right = f"{', '.join(chosen[:-1])} and {chosen[-1]}"
    topic = {"topic": category}
    wrong = tuple(fill(rng, p, topic).replace(" is ", " are ") for p in ABOUT[1:6])
    return prompt, right, (*wrong, f"{with_article(singular(category))} is nice")


def _finish(rng: random.Random) -> Task:
    start, end = rng.choice(LINES)
    head = skewed(rng, ("finish the line:", "complete the line:", "finish this line:",
                       "finish the sentence:", "complete the sentence:", "end this line:",
                       "continue the line:"))  # fmt: skip
    noun = start.split()[1]
    prompt = f"{head} {sentence(start, '')} ..." if rng.random() < 0.5 else f"{head} {start}"
    return prompt, f"{start} {end}", _about(rng, noun if noun in NOUNS else rng.choice(NOUNS))


def _start_with(rng: random.Random) -> Task:
    word = rng.choice(("today", "now", "here", "sometimes", "often", "look", "yesterday", "maybe",
                       "tomorrow", "once", "soon", "outside", "always", "yes",
                       "tonight"))  # fmt: skip
    topic = rng.choice(words.NATURE + words.ANIMALS + words.PLACES)
    prompt = skewed(
        rng,
        (
            f"start with the word {word} and tell me about the {topic}",
            f"start with the word {word} and tell me about a {topic}",
            f"start with the word {word} and tell me about {topic}",
            f"begin with the word {word} and write about the {topic}",
            f"begin your line with {word} and tell me about {topic}",
            f"use {word} as the first word and talk about the {topic}",
        ),
    )
    line = fill(rng, rng.choice(START_LINES), {"topic": topic})
    return prompt, f"{word} {line}", (*_about(rng, topic), line)


def _end_with(rng: random.Random) -> Task:
    noun = rng.choice(words.NATURE + words.PLACES)
    prompt = rng.choice((f"end your line with the word {noun}",
                         f"write a line that ends with {noun}",
                         f"end with the word {noun}"))  # fmt: skip
    line = rng.choice(("we walk to the {x}", "{name} looks at the {x}", "I like the {x}",
                       "the {animal} sleeps near the {x}",
                       "my {relative} paints the {x}"))  # fmt: skip
    return prompt, fill(rng, line, {"x": noun}), _about(rng, noun)


def _use_words(rng: random.Random) -> Task:
    first, second = rng.sample(NOUNS, 2)
    prompt = skewed(
        rng,
        (
            f"use the words {first} and {second} in a line",
            f"use the words {first} and {second} in one sentence",
            f"write a line with {first} and {second}",
            f"make a sentence with the words {first} and {second}",
            f"put {first} and {second} in one line",
            f"use {first} and {second} in a short sentence",
        ),
    )
    lines = (
        f"the {first} is near the {second}",
        f"I see a {first} and a {second}",
        f"the {second} is behind the {first}",
        f"{{name}} has a {first} and a {second}",
        f"a {first} stands next to the {second}",
        f"the {first} and the {second} are {{color}}",
    )
    return prompt, fill(rng, rng.choice(lines)), _about(rng, first)


def _repeat(rng: random.Random) -> Task:
    line = fill(rng, rng.choice(SCENES))
    head = skewed(rng, ("repeat after me:", "say this line:", "repeat this line:", "say after me:",
                       "copy this line:", "write this line again:", "repeat the line:",
                       "please repeat:"))  # fmt: skip
    return f"{head} {line}", line, _about(rng, rng.choice(NOUNS))


def _count(rng: random.Random) -> Task:
    low = rng.randint(1, 8)
    high = low + rng.randint(2, 4)
    numbers = words.NUMBER_NAMES[low : high + 1]
    if rng.random() < 0.3:
        numbers = numbers[::-1]
    prompt = rng.choice((f"count from {numbers[0]} to {numbers[-1]}",
                         f"please count from {numbers[0]} to {numbers[-1]}",
                         f"say the numbers from {numbers[0]} to {numbers[-1]}"))  # fmt: skip
    wrong = ("counting is easy to learn", "numbers are good to know", "I like to count",
             f"{numbers[0]} is a small number",
             f"{numbers[-1]} comes after other numbers")  # fmt: skip
    return prompt, ", ".join(numbers), wrong


def _ask(rng: random.Random) -> Task:
    noun = rng.choice(NOUNS)
    prompt = rng.choice((f"ask me a question about {with_article(noun)}",
                         f"write a question about {plural(noun)}",
                         f"ask a question with the word {noun}"))  # fmt: skip
    right = rng.choice((f"do you like {plural(noun)}?", f"what color is your {noun}?",
                        f"where is your {noun}?",
                        f"do you have {with_article(noun)}?"))  # fmt: skip
    return prompt, right, _about(rng, noun)


def _write_about(rng: random.Random) -> Task:
    noun = rng.choice(NOUNS)
    color, adjective = rng.choice(words.BASIC_COLORS), rng.choice(words.ADJECTIVES)
    prompt = rng.choice((f"write a line about a {color} {noun}",
                         f"describe a {adjective} {noun} with the word {color}",
                         f"tell me about {with_article(noun)} with the word {color}"))  # fmt: skip
    right = rng.choice((f"the {color} {noun} is {adjective}", f"I have a {color} {noun}",
                        f"a {color} {noun} is in the {{place}}"))  # fmt: skip
    return prompt, fill(rng, right), _about(rng, noun)


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
