"""Shapes whose rows hold one answer each, and groups of such rows as pairs.

A row says that an answer is good or bad (KTO), or how good it is (HelpSteer's ratings). Rows of one
prompt are gathered until the file ends; they become pairs where their labels differ.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from mlx_dpo.preferences.json_text import RawRow
from mlx_dpo.preferences.reader import json_line
from mlx_dpo.workshop.importers.chosen import DIALOGUES, PROMPTS, prompt_turns
from mlx_dpo.workshop.importers.fields import (
    Answer,
    Fields,
    Format,
    LeftOutError,
    Row,
    first_of,
    has,
    number,
    parsed,
    truth,
)
from mlx_dpo.workshop.importers.turns import are_messages, as_turns, with_context

_ANSWERS = ("completion", "response", "output", "answer")
_LABELS = ("label", "kto_tag", "feedback", "thumbs")
_RATINGS = ("helpfulness", "rating", "score", "overall_score", "reward")


class Held(NamedTuple):
    """A row that waits for others of its prompt.

    Attributes:
        number: Of the row, counted from 1 over all files.
        file: Its file.
        raw: The row.
        answer: What is in it.
    """

    number: int
    file: Path
    raw: RawRow
    answer: Answer


class Groups:
    """Rows by prompt."""

    def __init__(self) -> None:
        self._groups: dict[str, list[Held]] = {}

    def add(self, held: Held) -> None:
        """Hold a row; its text is let go, only its place and its answer are needed."""
        held.raw.source, held.raw.value = "", {}
        self._groups.setdefault(json_line({"prompt": held.answer.prompt}), []).append(held)

    def pairs(self, all_pairs: bool) -> Iterator[tuple[list[Held], list[tuple[Held, Held]]]]:
        """Each group's rows and its pairs, better row first.

        By default a row is in one pair: the best with the worst, the next best with the next
        worst, as long as they differ.

        Args:
            all_pairs: Whether every two rows that differ are a pair.
        """
        for rows in self._groups.values():
            best = sorted(rows, key=lambda held: -held.answer.score)  # of equals, the first
            worst = sorted(rows, key=lambda held: held.answer.score)
            half = len(rows) // 2
            twos = combinations(best, 2) if all_pairs else zip(best[:half], worst, strict=False)
            yield rows, [two for two in twos if two[0].answer.score > two[1].answer.score]


def _is_labelled(row: Fields) -> bool:
    label = first_of(row, _LABELS)
    return label is not None and truth(row[label]) is not None and _holds_answer(row)


def _is_rated(row: Fields) -> bool:
    rating = first_of(row, _RATINGS)
    return rating is not None and number(row[rating]) is not None and _holds_answer(row)


def _holds_answer(row: Fields) -> bool:
    dialogue = any(are_messages(parsed(row.get(name))) for name in DIALOGUES)
    asked = dialogue or first_of(row, PROMPTS) is not None
    return asked and (dialogue or first_of(row, _ANSWERS) is not None) and not has(row, "chosen")


def _labelled(row: Row) -> Answer:
    name = row.first(*_LABELS)
    label = None if name is None else truth(row.values[name])
    if label is None:
        raise LeftOutError("missing-key", "no label, which must be true or false")
    return _answer(row, float(label))


def _rated(row: Row) -> Answer:
    rating = number(row.get(*_RATINGS))
    if rating is None:
        raise LeftOutError("missing-key", "no rating, which must be a number")
    return _answer(row, rating)


def _answer(row: Row, score: float) -> Answer:
    name = row.first(*_ANSWERS)
    prompt = prompt_turns(row)
    if not prompt:
        raise LeftOutError("missing-key", "key 'prompt' is missing")
    if name is not None:
        turns = as_turns(row, name, row.values[name], "assistant")
    else:
        turns, prompt = prompt[-1:], prompt[:-1]
        if not prompt or turns[0]["role"] != "assistant":
            reason = "the dialogue does not end with the assistant's answer"
            raise LeftOutError("no-common-prompt", reason)
    return Answer(with_context(row, prompt), turns, score, row.get("kind"))


KTO = Format(
    "kto",
    "answers marked good or bad, paired by prompt",
    "prompt, completion (or messages), label (or kto_tag)",
    _is_labelled,
    answer=_labelled,
    lenient=True,
)
RATED = Format(
    "rated",
    "answers with a rating each (HelpSteer), paired by prompt",
    "prompt, response (or messages), helpfulness (or rating, score)",
    _is_rated,
    answer=_rated,
    lenient=True,
)
