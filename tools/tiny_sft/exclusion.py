"""What the tiny model must never see: the preference data it is later trained and judged on."""

import json
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tools.tiny_sft.lists import read
from tools.tiny_sft.rules import normalise

DATA = Path(__file__).resolve().parents[2] / "data" / "dpo"
LONGEST_SHORT_ANSWER = 3
CHAT = read("chat")
UNRELATED = CHAT["unrelated"]
"""Questions held out from the text: on these the side effects of DPO are measured."""


def excluded_texts(folder: Path = DATA) -> frozenset[str]:
    """Every prompt and every answer of more than three words, normalised; questions of ours too."""
    texts = {normalise(question) for question in UNRELATED}
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            texts.add(normalise(row["user"]))
            answers = (normalise(row[key]) for key in ("chosen", "rejected"))
            texts.update(a for a in answers if len(a.split()) > LONGEST_SHORT_ANSWER)
    return frozenset(texts)


class Exclusion:
    """Says whether a text holds an excluded text, word for word.

    Looked up by the first words of each excluded text, which keeps a text to one pass.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.by_start: dict[str, list[str]] = {}
        for text in sorted(texts):
            self.by_start.setdefault(" ".join(text.split()[:2]), []).append(text)

    def touches(self, text: str) -> bool:
        """Whether an excluded text occurs in this one as whole words, marks and case aside."""
        plain = normalise(text)
        words = plain.split()
        padded = f" {plain} "
        starts = set(words) | {f"{a} {b}" for a, b in pairwise(words)}
        return any(
            f" {held} " in padded
            for start in starts & self.by_start.keys()
            for held in self.by_start[start]
        )


def marker_free(text: str) -> bool:
    """Whether a text is plain: ASCII, and without anything that looks like a special token."""
    return text.isascii() and not re.search(r"<\||\|>", text)
