"""The whole text of the tiny model, from one seed: plain documents, then dialogues."""

import random
from collections.abc import Callable, Iterator

from tools.tiny_sft import knowledge, manners
from tools.tiny_sft.exclusion import CHAT, Exclusion, excluded_texts, marker_free
from tools.tiny_sft.forms import format_example
from tools.tiny_sft.instruction import PHRASES as TASKS
from tools.tiny_sft.instruction import instruction
from tools.tiny_sft.lists import read, rows
from tools.tiny_sft.slots import Example, choose_and_fill, fill, sentence
from tools.tiny_sft.style import plain_statement, style

NUM_DOCUMENTS = 20_000
NUM_EXAMPLES = 150_000
SEED = 7
MAX_SENTENCES = 6
DOCUMENTS = read("documents")
TALK = rows(CHAT["pattern"])


def base_documents(rng: random.Random, count: int = NUM_DOCUMENTS) -> Iterator[str]:
    """Plain documents for the base model, none of which holds an excluded text."""
    exclusion = Exclusion(excluded_texts())
    while count:
        text = document(rng)
        if marker_free(text) and not exclusion.touches(text):
            count -= 1
            yield text


def sft_examples(rng: random.Random, count: int = NUM_EXAMPLES) -> Iterator[Example]:
    """Dialogues of all kinds, mixed; none holds an excluded text in question or answer."""
    exclusion = Exclusion(excluded_texts())
    makers, weights = zip(*MAKERS.values(), strict=True)
    while count:
        example: Example = rng.choices(makers, weights)[0](rng)
        both = f"{example.prompt} {example.answer}"
        if marker_free(both) and not exclusion.touches(both):
            count -= 1
            yield example


def document(rng: random.Random) -> str:
    """Two to six sentences of the same world, never in dialogue form."""
    return " ".join(_sentence(rng) for _ in range(rng.randint(2, MAX_SENTENCES)))


def _sentence(rng: random.Random) -> str:
    form = rng.random()
    if form < 0.5:
        return choose_and_fill(rng, DOCUMENTS["story"] + DOCUMENTS["more"], {})
    if form < 0.65:
        return sentence(plain_statement(rng)[1])
    if form < 0.75:
        return manners.advice(rng)[1]
    if form < 0.9:
        maker = rng.choice((knowledge.factual, knowledge.opposites, knowledge.arithmetic))
        return maker(rng).answer
    return sentence(choose_and_fill(rng, TASKS["scene"], {}))


def chat(rng: random.Random) -> Example:
    """Greetings, little stories and tastes, on which no manner is trained."""
    question, answer = rng.choice(TALK)
    if "story" in question and "title" not in question and rng.random() < 0.5:
        answer = rng.choice(CHAT["story"])
    given: dict[str, str] = {}
    prompt = fill(rng, question, given)
    return Example("chat", prompt, sentence(fill(rng, answer, given)), "")


# Each kind's maker and its share of the dialogues; kinds with more forms to learn get more.
MAKERS: dict[str, tuple[Callable[[random.Random], Example], int]] = {
    "style": (style, 12),
    "honesty": (manners.honesty, 12),
    "tone": (manners.tone, 15),
    "format": (format_example, 18),
    "helpfulness": (manners.helpfulness, 10),
    "safety": (manners.safety, 12),
    "instruction": (instruction, 16),
    "factual": (knowledge.factual, 8),
    "arithmetic": (knowledge.arithmetic, 5),
    "opposites": (knowledge.opposites, 5),
    "chat": (chat, 12),
}
