"""List words of the preference data that the tiny model's text has too rarely.

    python -m tools.tiny_sft.coverage

A word that the model has hardly read cannot carry a manner to a new question; the lists in
`phrases/` are extended by the words found here, in combinations of their own.
"""

import json
import random
from collections import Counter

from tools.tiny_sft.exclusion import DATA
from tools.tiny_sft.rules import normalise
from tools.tiny_sft.text import SEED, base_documents, sft_examples

FEWEST = 20


def rare_words() -> dict[str, int]:
    """Each word of the preference data that occurs fewer than 20 times, with its count."""
    rng = random.Random(SEED)
    counts: Counter[str] = Counter()
    for text in base_documents(rng):
        counts.update(normalise(text).split())
    for example in sft_examples(rng):
        counts.update(normalise(f"{example.prompt} {example.answer}").split())
    asked: Counter[str] = Counter()
    for path in sorted(DATA.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            asked.update(normalise(" ".join((row["user"], row["chosen"], row["rejected"]))).split())
    return {word: counts[word] for word, _ in asked.most_common() if counts[word] < FEWEST}


if __name__ == "__main__":
    rare = rare_words()
    print(f"{len(rare)} words of data/dpo occur fewer than {FEWEST} times in the text")
    for word, count in rare.items():
        print(f"{word:20} {count}")
