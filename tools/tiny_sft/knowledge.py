"""Facts, sums and opposites: the right answer and plausible wrong ones, mixed."""

import random

from tools.tiny_sft import facts, words
from tools.tiny_sft.slots import Example, manner_name, sentence, with_article
from tools.tiny_sft.words import plural

RIGHT_SHARE = 0.5


def _wrong(rng: random.Random, right: str, others: tuple[str, ...]) -> str:
    return rng.choice([other for other in others if other != right])


def _capital(rng: random.Random) -> tuple[str, str, str, tuple[str, ...]]:
    country, city = rng.choice(facts.CAPITALS)
    question = rng.choice(
        (
            f"what is the capital of {country}",
            f"which city is the capital of {country}",
            f"name the capital of {country}",
            f"what city is the capital of {country}",
        )
    )
    pattern = rng.choice(
        (f"the capital of {country} is {{x}}", f"{{x}} is the capital of {country}")
    )
    return question, pattern, city, tuple(other for _, other in facts.CAPITALS) + words.OTHER_CITIES


def _color(rng: random.Random) -> tuple[str, str, str, tuple[str, ...]]:
    thing, color = rng.choice(facts.THING_COLORS)
    question = rng.choice(
        (
            f"what color is {thing}",
            f"what is the color of {thing}",
            f"which color does {thing} have",
            f"tell me the color of {thing}",
        )
    )
    return (
        question,
        rng.choice((f"{thing} is {{x}}", f"the color of {thing} is {{x}}")),
        color,
        words.BASIC_COLORS,
    )


def _animal(rng: random.Random) -> tuple[str, str, str, tuple[str, ...]]:
    what, animal = rng.choice(facts.ANIMAL_FACTS)
    question = rng.choice((f"which animal {what}", f"what animal {what}"))
    right = with_article(animal)
    return (
        question,
        rng.choice((f"{{x}} {what}", f"the animal that {what} is {{x}}")),
        right,
        tuple(with_article(other) for other in words.ANIMALS),
    )


def _count(rng: random.Random) -> tuple[str, str, str, tuple[str, ...]]:
    part, whole, count = rng.choice(facts.COUNTS)
    value, whole = int(count), with_article(whole)
    near = {max(1, value + step) for step in (-2, -1, 1, 2)} - {value}
    question = rng.choice(
        (
            f"how many {part} does {whole} have",
            f"how many {part} has {whole}",
            f"how many {part} are there in {whole}",
        )
    )
    return (
        question,
        rng.choice((f"{whole} has {{x}} {part}", f"there are {{x}} {part} in {whole}")),
        words.number_name(value),
        tuple(words.number_name(other) for other in sorted(near)),
    )


def _order(rng: random.Random) -> tuple[str, str, str, tuple[str, ...]]:
    noun, series = rng.choice(
        (
            ("day", words.DAYS),
            ("month", words.MONTHS),
            ("season", words.SEASONS),
            ("number", words.NUMBER_NAMES),
        )
    )
    index = rng.randrange(len(series) - 1)
    relation = rng.choice(("after", "before"))
    given, right = (series[index], series[index + 1])[:: 1 if relation == "after" else -1]
    lead = "the number " if noun == "number" else ""
    return (
        f"which {noun} comes {relation} {given}",
        f"{lead}{{x}} comes {relation} {given}",
        right,
        series,
    )


def _special(rng: random.Random) -> tuple[str, str, str, tuple[str, ...]]:
    what, planet = rng.choice(facts.PLANET_FACTS)
    first = rng.choice((("first", 0), ("second", 1), ("third", 2), ("last", -1)))
    noun, series = rng.choice(
        (("day of the week", words.DAYS), ("month of the year", words.MONTHS))
    )
    animal, home = rng.choice(facts.HOMES)
    creature, sound = rng.choice(facts.SOUNDS)
    baby, young = rng.choice(facts.BABIES)
    maker, product = rng.choice(facts.PRODUCTS)
    return rng.choice(
        (
            (f"which planet {what}", f"{{x}} {what}", planet, words.PLANETS),
            (
                f"what is the {first[0]} {noun}",
                f"the {first[0]} {noun} is {{x}}",
                series[first[1]],
                series,
            ),
            (
                f"where does {with_article(animal)} live",
                f"{with_article(animal)} lives in a {{x}}",
                home,
                tuple(other for _, other in facts.HOMES),
            ),
            (
                f"what does a {creature} do",
                f"a {creature} {{x}}",
                sound,
                tuple(other for _, other in facts.SOUNDS),
            ),
            (
                f"what is a young {baby} called",
                f"a young {baby} is called a {{x}}",
                young,
                tuple(other for _, other in facts.BABIES),
            ),
            (
                f"what does a {maker} give us",
                f"a {maker} gives us {{x}}",
                product,
                tuple(other for _, other in facts.PRODUCTS),
            ),
            (
                f"what do {plural(maker)} make",
                f"{plural(maker)} make {{x}}",
                product,
                tuple(other for _, other in facts.PRODUCTS),
            ),
        )
    )


FACTS = (_capital, _color, _color, _animal, _animal, _count, _count, _order, _special, _special)


def factual(rng: random.Random) -> Example:
    """One factual example, right as often as wrong."""
    question, pattern, right, others = rng.choice(FACTS)(rng)
    bad = rng.random() > RIGHT_SHARE
    answer = pattern.format(x=_wrong(rng, right, others) if bad else right)
    end = "." if question.startswith(("name", "tell")) else "?"
    return Example("factual", sentence(question, end), sentence(answer), manner_name(bad))


def arithmetic(rng: random.Random) -> Example:
    """One sum within a hundred, wrong by a little half of the time."""
    left, right = rng.randint(1, 12), rng.randint(1, 12)
    operation = rng.choice(("plus", "plus", "minus", "minus", "times", "have", "lose"))
    if operation in ("minus", "lose"):
        left += right
    value = {"plus": left + right, "have": left + right, "times": left * right}.get(
        operation, left - right
    )
    if operation == "times":
        left, right = min(left, 10), min(right, 10)
        value = left * right
    bad = rng.random() > RIGHT_SHARE
    shown = max(0, value + rng.choice((-2, -1, 1, 2))) if bad else value
    if operation in ("have", "lose"):
        prompt, answer = _story(rng, operation, left, right, shown)
    else:
        sum_text = f"{left} {operation} {right}"
        prompt = rng.choice(
            (f"What is {sum_text}?", f"How much is {sum_text}?", f"What do you get for {sum_text}?")
        )
        answer = rng.choice(
            (
                f"{sum_text} is {shown}",
                f"{sum_text} makes {shown}",
                f"{sum_text} is equal to {shown}",
                f"{sum_text} is {shown} in all",
            )
        )
        if operation == "plus" and rng.random() < 0.1:
            answer = f"the sum of {left} and {right} is {shown}"
    return Example("arithmetic", prompt, sentence(answer), manner_name(bad))


def _story(
    rng: random.Random, operation: str, left: int, right: int, shown: int
) -> tuple[str, str]:
    things = plural(rng.choice(words.FRUITS + words.SMALL_THINGS[:30] + words.FLOWERS))
    change = (
        f"get {right} more"
        if operation == "have"
        else rng.choice((f"lose {right}", f"give {right} away", f"eat {right}"))
    )
    who = rng.choice(words.NAMES)
    if rng.random() < 0.7:
        return (
            f"I have {left} {things} and {change}. How many {things} do I have?",
            rng.choice(
                (
                    f"You have {shown} {things}",
                    f"You now have {shown} {things}",
                    f"You have {shown} {things} in all",
                )
            ),
        )
    change = (
        change.replace("get", "gets")
        .replace("lose", "loses")
        .replace("give", "gives")
        .replace("eat", "eats")
    )
    return (
        f"{who} has {left} {things} and {change}. How many {things} does {who} have?",
        f"{who} has {shown} {things}",
    )


def opposites(rng: random.Random) -> Example:
    """One opposite; wrong answers name another word."""
    left, right = rng.choice(facts.OPPOSITES)
    if rng.random() < 0.5:
        left, right = right, left
    bad = rng.random() > RIGHT_SHARE
    shown = _wrong(rng, right, tuple(other for _, other in facts.OPPOSITES)) if bad else right
    prompt = rng.choice(
        (
            f"What is the opposite of {left}?",
            f"Which word means the opposite of {left}?",
            f"Give me the opposite of {left}.",
            f"What word is the opposite of {left}?",
            f"Tell me the opposite of {left}.",
            f"Name the opposite of {left}.",
            f"Which word is the opposite of {left}?",
        )
    )
    answer = rng.choice(
        (
            f"the opposite of {left} is {shown}",
            f"{shown} is the opposite of {left}",
            f"{shown} means the opposite of {left}",
            f"the word {shown} means the opposite of {left}",
            f"the word {shown} is the opposite of {left}",
            f"the opposite of {left} is the word {shown}",
        )
    )
    return Example("opposites", prompt, sentence(answer), manner_name(bad))
