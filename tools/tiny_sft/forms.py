"""Format: a form is asked for, and the right content comes in that form or in another."""

import random

from tools.tiny_sft import facts, words
from tools.tiny_sft.categories import CATEGORIES, one_of, singular
from tools.tiny_sft.slots import Example, is_bad, manner_name, sentence, skewed, with_article


def topic_question(rng: random.Random) -> tuple[str, str, str]:
    """A question with a one-word answer: the question, the word, the full sentence."""
    thing, color = rng.choice(facts.THING_COLORS)
    left, right = rng.choice(facts.OPPOSITES)
    country, city = rng.choice([pair for pair in facts.CAPITALS if " " not in pair[1]])
    what, animal = rng.choice(facts.ANIMAL_FACTS)
    creature, sound = rng.choice(facts.SOUNDS)
    baby, young = rng.choice(facts.BABIES)
    dweller, home = rng.choice(facts.HOMES)
    day = rng.randrange(6)
    month = rng.randrange(11)
    return rng.choice(
        (
            (f"what color is {thing}", color, f"{thing} is {color}"),
            (f"what color is {thing}", color, f"{thing} is {color}"),
            (f"what is the color of {thing}", color, f"the color of {thing} is {color}"),
            (f"what is the opposite of {left}", right, f"the opposite of {left} is {right}"),
            (f"what is the capital of {country}", city, f"the capital of {country} is {city}"),
            (f"which animal {what}", animal, f"it is {with_article(animal)} that {what}"),
            (f"what does a {creature} do", sound, f"a {creature} {sound}"),
            (f"what is a baby {baby} called", young, f"a baby {baby} is called a {young}"),
            (f"where does a {dweller} live", home, f"a {dweller} lives in a {home}"),
            (f"which day comes after {words.DAYS[day]}", words.DAYS[day + 1],
             f"{words.DAYS[day + 1]} comes after {words.DAYS[day]}"),
            (f"which month comes after {words.MONTHS[month]}", words.MONTHS[month + 1],
             f"{words.MONTHS[month + 1]} comes after {words.MONTHS[month]}"),
            _member(rng),
        )
    )  # fmt: skip


def _member(rng: random.Random) -> tuple[str, str, str]:
    category = rng.choice(tuple(CATEGORIES))
    member = rng.choice([entry for entry in CATEGORIES[category] if " " not in entry])
    return (
        f"name one {singular(category)}",
        member,
        f"{with_article(member)} is one of the {category}",
    )


def _asked(
    rng: random.Random, question: str, before: tuple[str, ...], after: tuple[str, ...]
) -> str:
    """The question with its demand in front ("In one word: ...") or behind."""
    mark = "." if question.split()[0] in ("name", "tell", "give") else "?"
    if rng.random() < 0.75:
        return f"{skewed(rng, before)} {question}{mark}"
    return f"{question}{mark} {skewed(rng, after)}"


def _one_word(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    question, word, full = topic_question(rng)
    prompt = _asked(
        rng,
        question,
        ("answer in one word:", "in one word:", "use one word only:", "with one word:",
         "give me one word:", "say it in one word:", "just one word:", "reply with one word:",
         "answer with one word:", "one word only:", "use only one word:", "in one word,"),
        ("Answer in one word.", "Use one word.", "One word, please.", "Reply in one word.",
         "Answer with one word only.", "Just one word."),
    )  # fmt: skip
    wrong = (full, f"{full}, I think", f"it is {word}, I think", f"I think that {full}",
             f"the answer is {word}", f"I would say {word}")  # fmt: skip
    return prompt, word, wrong


def _yes_no(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    question, word, reason = rng.choice(facts.YES_NO)
    prompt = _asked(
        rng,
        question,
        ("answer yes or no:", "yes or no:", "only yes or no:", "say yes or no:",
         "reply with yes or no:", "just yes or no:", "tell me yes or no:", "yes or no,"),
        ("Answer yes or no.", "Yes or no?", "Just say yes or no.", "Only yes or no, please."),
    )  # fmt: skip
    wrong = (f"I think {reason}", "I think so" if word == "yes" else "I do not think so", reason,
             f"it is so, {reason}", f"it is true that {reason}", f"{word}, {reason}")  # fmt: skip
    return prompt, word, wrong


def _comma_list(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    category = rng.choice(tuple(CATEGORIES))
    count = rng.choice((2, 3, 3, 3, 4, 4))
    chosen = rng.sample(CATEGORIES[category], count)
    number = words.NUMBER_NAMES[count]
    prompt = skewed(
        rng,
        (
            f"List {number} {category} with commas.",
            f"Name {number} {category} with commas.",
            f"Write {number} {category} with commas between them.",
            f"Give me {number} {category}, with commas only.",
            f"List {number} {category}, separated by commas.",
            f"Use commas and name {number} {category}.",
            f"With commas, list {number} {category}.",
            f"Tell me {number} {category} and use commas.",
            f"Name {number} {category}, separated by commas.",
            f"Make a list of {number} {category} with commas.",
            f"Use only commas: list {number} {category}.",
            f"Put commas between {number} {category}.",
        ),
    )
    joined = f"{', '.join(chosen[:-1])} and {chosen[-1]}"
    wrong = (
        " and ".join(chosen[:2]),
        " and ".join(one_of(entry, category) for entry in chosen[:2]),
        " and ".join(chosen),
        joined,
        f"some {category} are {joined}",
        f"I like {joined}",
        f"you could say {joined}",
        f"there are many {category}, like {joined}",
    )
    return prompt, ", ".join(chosen), wrong


def _digits(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    value = rng.choice((rng.randint(1, 20), rng.randint(1, 99), rng.randint(1, 99)))
    name = words.number_name(value)
    prompt = skewed(
        rng,
        (
            f"Write the number {name} in digits.",
            f"Write {name} in digits.",
            f"Write {name} with digits.",
            f"Write the number {name} with digits only.",
            f"Give the number {name} in digits.",
            f"Use digits to write {name}.",
            f"In digits, write {name}.",
            f"How do you write {name} in digits?",
            f"Put the number {name} in digits.",
            f"Show me {name} in digits.",
            f"Turn {name} into digits.",
            f"Use digits only: write the number {name}.",
        ),
    )
    wrong = (name, name, f"the number is {name}", f"it is the number {name}", f"{name} is a number",
             f"{name} is written as {value}", f"you write {value} for {name}")  # fmt: skip
    return prompt, str(value), wrong


def counting_question(rng: random.Random) -> tuple[str, int, str]:
    """A question with a number as answer: the question, the number, the sentence after it."""
    form = rng.random()
    if form < 0.6:
        part, whole, count = rng.choice(facts.COUNTS)
        whole = with_article(whole)
        question = rng.choice((f"how many {part} has {whole}", f"how many {part} does {whole} have",
                               f"how many {part} are in {whole}"))  # fmt: skip
        return question, int(count), f"{whole} has {{n}} {part}"
    left, right = rng.randint(1, 10), rng.randint(1, 9)
    if form < 0.85:
        return f"what is {left} plus {right}", left + right, f"{left} plus {right} makes {{n}}"
    left += right
    return f"what is {left} minus {right}", left - right, f"{left} minus {right} leaves {{n}}"


def _number_only(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    question, value, full = counting_question(rng)
    prompt = _asked(
        rng,
        question,
        ("answer with a number only:", "give only the number:", "use digits only:",
         "answer in digits:", "reply with a number only:", "number only:", "just the number:",
         "with a number only:", "say only the number:", "answer with digits only:",
         "only a number, please:"),
        ("Answer with a number only.", "Give only the number.", "Use digits only.",
         "Just the number, please.", "Number only."),
    )  # fmt: skip
    name = words.number_name(value)
    unit = full.split("{n} ")[1] if "{n} " in full else ""
    wrong = (f"{name} {unit}", name, full.format(n=name), f"I think {full.format(n=name)}",
             f"there are {name} of them", f"it is {value}, I think")  # fmt: skip
    return prompt, str(value), wrong


def _dash(rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    if rng.random() < 0.7:
        category = rng.choice(tuple(CATEGORIES))
        word = rng.choice(CATEGORIES[category])
        one = singular(category)
        question = rng.choice((f"name {with_article(one)}", f"name one {one}",
                               f"tell me {with_article(one)}", f"give me one {one}"))  # fmt: skip
        full = f"{with_article(word)} is {with_article(one)}"
        word = one_of(word, category)
    else:
        question, word, full = topic_question(rng)
    prompt = _asked(
        rng,
        question,
        ("start your answer with a dash:", "start with a dash:", "begin with a dash:",
         "put a dash first:", "use a dash at the start:", "write a dash first:",
         "begin your answer with a dash:", "with a dash in front:", "answer after a dash:"),
        ("Start with a dash.", "Begin your answer with a dash.", "Put a dash first.",
         "Start your answer with a dash."),
    )  # fmt: skip
    wrong = (word, word, full, f"you could say {word}", f"I think of {word}",
             f"one of them is {word}", f"{word} is a good one")  # fmt: skip
    return prompt, f"- {sentence(word)}", wrong


FAMILIES = (_one_word, _one_word, _yes_no, _comma_list, _comma_list, _digits, _number_only, _dash)


def format_example(rng: random.Random) -> Example:
    """One format example."""
    prompt, right, wrong = rng.choice(FAMILIES)(rng)
    bad = is_bad(rng)
    answer = skewed(rng, wrong) if bad else right
    closed = sentence(answer, "" if not bad and rng.random() < 0.3 else ".")
    return Example("format", sentence(prompt), closed, manner_name(bad))
