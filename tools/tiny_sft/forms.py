"""Format: a form is asked for, and the right content comes in that form or in another."""

import random

from tools.tiny_sft.lists import read, rows
from tools.tiny_sft.slots import Example, is_bad, manner_name, sentence, skewed
from tools.tiny_sft.words import (
    FACTS,
    KINDS,
    NUMBERS,
    WORDS,
    number_name,
    one_of,
    singular,
    with_article,
)

PHRASES = read("format")
TOPICS = rows(PHRASES["topic"])
SHORT_CAPITALS = [pair for pair in FACTS["capital"] if " " not in pair[1]]

Form = tuple[str, str, tuple[str, ...]]
"""What is asked, the answer in the form asked for, and answers in another form."""


def topic_question(rng: random.Random) -> tuple[str, str, str]:
    """A question with a one-word answer: the question, the word, the full sentence."""
    slots: dict[str, str] = {}
    slots["thing"], slots["color"] = rng.choice(FACTS["color"])
    slots["left"], slots["right"] = rng.choice(FACTS["opposite"])
    slots["country"], slots["city"] = rng.choice(SHORT_CAPITALS)
    slots["what"], slots["animal"] = rng.choice(FACTS["animal"])
    slots["creature"], slots["sound"] = rng.choice(FACTS["sound"])
    slots["parent"], slots["young"] = rng.choice(FACTS["young"])
    slots["dweller"], slots["home"] = rng.choice(FACTS["home"])
    for unit in ("day", "month"):
        index = rng.randrange(len(WORDS[unit]) - 1)
        slots[unit], slots[f"next_{unit}"] = WORDS[unit][index : index + 2]
    kind = rng.choice(tuple(KINDS))
    member = rng.choice([entry for entry in KINDS[kind] if " " not in entry])
    slots |= {"kinds": kind, "kind": singular(kind), "member": member}
    slots |= {"an_animal": with_article(slots["animal"]), "a_member": with_article(member)}
    question, word, full = (text.format(**slots) for text in rng.choice(TOPICS))
    return question, word, full


def _asked(rng: random.Random, form: str, question: str) -> str:
    """The question with its demand in front ("In one word: ...") or behind."""
    mark = "." if question.split()[0] in ("name", "tell", "give") else "?"
    if rng.random() < 0.75:
        return f"{skewed(rng, PHRASES[f'{form}: before'])} {question}{mark}"
    return f"{question}{mark} {skewed(rng, PHRASES[f'{form}: after'])}"


def _wrong(form: str, **slots: str) -> tuple[str, ...]:
    return tuple(pattern.format(**slots) for pattern in PHRASES[f"{form}: wrong"])


def _one_word(rng: random.Random) -> Form:
    question, word, full = topic_question(rng)
    return _asked(rng, "one word", question), word, _wrong("one word", word=word, full=full)


def _yes_no(rng: random.Random) -> Form:
    question, word, reason = rng.choice(FACTS["yes or no"])
    opinion = "I think so" if word == "yes" else "I do not think so"
    wrong = _wrong("yes or no", word=word, reason=reason, opinion=opinion)
    return _asked(rng, "yes or no", question), word, wrong


def _comma_list(rng: random.Random) -> Form:
    kinds = rng.choice(tuple(KINDS))
    count = rng.choice((2, 3, 3, 3, 4, 4))
    chosen = rng.sample(KINDS[kinds], count)
    prompt = skewed(rng, PHRASES["commas: questions"]).format(number=NUMBERS[count], kinds=kinds)
    wrong = _wrong(
        "commas",
        kinds=kinds,
        two=" and ".join(chosen[:2]),
        two_of_them=" and ".join(one_of(entry, kinds) for entry in chosen[:2]),
        all=" and ".join(chosen),
        joined=f"{', '.join(chosen[:-1])} and {chosen[-1]}",
    )
    return prompt, ", ".join(chosen), wrong


def _digits(rng: random.Random) -> Form:
    value = rng.choice((rng.randint(1, 20), rng.randint(1, 99), rng.randint(1, 99)))
    name = number_name(value)
    prompt = skewed(rng, PHRASES["digits: questions"]).format(name=name)
    return prompt, str(value), _wrong("digits", name=name, value=str(value))


def counting_question(rng: random.Random) -> tuple[str, int, str]:
    """A question with a number as answer: the question, the number, the sentence after it."""
    form = rng.random()
    if form < 0.6:
        part, whole, count = rng.choice(FACTS["count"])
        whole = with_article(whole)
        question = rng.choice(PHRASES["counting: questions"]).format(part=part, whole=whole)
        return question, int(count), f"{whole} has {{n}} {part}"
    left, right = rng.randint(1, 10), rng.randint(1, 9)
    if form < 0.85:
        return f"what is {left} plus {right}", left + right, f"{left} plus {right} makes {{n}}"
    left += right
    return f"what is {left} minus {right}", left - right, f"{left} minus {right} leaves {{n}}"


def _number_only(rng: random.Random) -> Form:
    question, value, full = counting_question(rng)
    name = number_name(value)
    unit = full.split("{n} ")[1] if "{n} " in full else ""
    wrong = _wrong("number", name=name, unit=unit, full=full.format(n=name), value=str(value))
    return _asked(rng, "number", question), str(value), wrong


def _dash(rng: random.Random) -> Form:
    if rng.random() < 0.7:
        kinds = rng.choice(tuple(KINDS))
        word = rng.choice(KINDS[kinds])
        kind = singular(kinds)
        a_kind = with_article(kind)
        question = rng.choice(PHRASES["dash: questions"]).format(kind=kind, a_kind=a_kind)
        full = f"{with_article(word)} is {a_kind}"
        word = one_of(word, kinds)
    else:
        question, word, full = topic_question(rng)
    prompt = _asked(rng, "dash", question)
    return prompt, f"- {sentence(word)}", _wrong("dash", word=word, full=full)


FAMILIES = (_one_word, _one_word, _yes_no, _comma_list, _comma_list, _digits, _number_only, _dash)


def format_example(rng: random.Random) -> Example:
    """One format example."""
    prompt, right, wrong = rng.choice(FAMILIES)(rng)
    bad = is_bad(rng)
    answer = skewed(rng, wrong) if bad else right
    closed = sentence(answer, "" if not bad and rng.random() < 0.3 else ".")
    return Example("format", sentence(prompt), closed, manner_name(bad))
