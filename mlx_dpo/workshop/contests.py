"""Two answers to a prompt that somebody has to choose between."""

from itertools import combinations
from typing import NamedTuple

from mlx_dpo.workshop.candidates import Answer, Candidates


class Contest(NamedTuple):
    """Two different answers to a prompt.

    Attributes:
        id: Of the pair it may become.
        row: Where they come from.
        first: One answer.
        second: The other.
    """

    id: str
    row: Candidates
    first: Answer
    second: Answer


def different_answers(row: Candidates) -> list[Answer]:
    """The answers of a row that are not blank, each text once."""
    return list({answer.text: answer for answer in row.answers if answer.text.strip()}.values())


def contests_of(row: Candidates) -> list[Contest]:
    """Every two different answers of a row."""
    pairs = list(combinations(different_answers(row), 2))
    if len(pairs) == 1:
        return [Contest(row.id, row, *pairs[0])]
    return [Contest(f"{row.id}-{number}", row, *pair) for number, pair in enumerate(pairs, 1)]
