"""The whole text of the tiny model, from one seed: plain documents, then dialogues."""

import random
from collections.abc import Callable, Iterator

from tools.tiny_sft import (
    base,
    chat,
    forms,
    helpfulness,
    honesty,
    instruction,
    knowledge,
    safety,
    style,
    tone,
)
from tools.tiny_sft.exclusion import Exclusion, excluded_texts, marker_free
from tools.tiny_sft.slots import Example

NUM_DOCUMENTS = 20_000
NUM_EXAMPLES = 150_000
SEED = 7

# Each kind's maker and its share of the dialogues; kinds with more forms to learn get more.
MAKERS: dict[str, tuple[Callable[[random.Random], Example], int]] = {
    "style": (style.style, 12),
    "honesty": (honesty.honesty, 12),
    "tone": (tone.tone, 15),
    "format": (forms.format_example, 18),
    "helpfulness": (helpfulness.helpfulness, 10),
    "safety": (safety.safety, 12),
    "instruction": (instruction.instruction, 16),
    "factual": (knowledge.factual, 8),
    "arithmetic": (knowledge.arithmetic, 5),
    "opposites": (knowledge.opposites, 5),
    "chat": (chat.chat, 12),
}


def base_documents(rng: random.Random, count: int = NUM_DOCUMENTS) -> Iterator[str]:
    """Plain documents for the base model, none of which holds an excluded text."""
    exclusion = Exclusion(excluded_texts())
    while count:
        text = base.document(rng)
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
