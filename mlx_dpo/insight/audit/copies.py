"""Rows that say the same twice: copies, near-copies, contradictions.

Near-copies are found exactly and not by sampling: two sets of n word triples with a Jaccard
similarity of at least t share one of their rarest n - ceil(t n) + 1 (the prefix filter of Chaudhuri
et al. 2006), so only rows that share a rare triple are compared.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mlx_dpo.insight.audit.bias import text_of
from mlx_dpo.records import Preference

NEAR = 0.8  # Jaccard similarity of word triples from which two rows count as near-copies

_TOKEN = re.compile(r"\w+|[^\w\s]")
# Odd and large, so that products of word numbers spread over all 64 bits.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)

Shingles = npt.NDArray[np.int64]


def normalised(text: str) -> str:
    """Text without differences of case, white space and closing punctuation.

    Inner punctuation stays: `7 - 5` and `7 + 5` are two questions.
    """
    return " ".join(text.casefold().split()).rstrip(" .?!")


def prompt_key(preference: Preference) -> tuple[tuple[str, str], ...]:
    """What makes two prompts the same."""
    return tuple((turn.role, normalised(turn.content)) for turn in preference.prompt)


def copies(preferences: Sequence[Preference]) -> list[tuple[int, int]]:
    """Rows that repeat an earlier one, each with the first of its like."""
    first: dict[object, int] = {}
    pairs = []
    for row, p in enumerate(preferences):
        earlier = first.setdefault((prompt_key(p), *_sides(p)), row)
        if earlier != row:
            pairs.append((row, earlier))
    return pairs


def contradictions(preferences: Sequence[Preference]) -> list[tuple[int, ...]]:
    """Groups of rows that can't all be obeyed: on one prompt, a over b and b over a.

    Longer circles count as well (a over b, b over c, c over a), and so does a row whose two
    answers are the same.
    """
    by_prompt: dict[object, list[tuple[int, str, str]]] = defaultdict(list)
    for row, p in enumerate(preferences):
        by_prompt[prompt_key(p)].append((row, *_sides(p)))
    groups = []
    for edges in by_prompt.values():
        beats: dict[str, set[str]] = defaultdict(set)
        for _, winner, loser in edges:
            beats[winner].add(loser)
        circular = tuple(row for row, winner, loser in edges if _reaches(beats, loser, winner))
        if circular:
            groups.append(circular)
    return groups


def near_copies(shingles: Sequence[Shingles], skip: set[int]) -> list[tuple[int, int, float]]:
    """Rows much like an earlier one: ``(row, the earlier row, similarity)``.

    A row that is like an earlier one is not compared with later ones itself, so a crowd of like
    rows names one row they are like, and costs no square of its size. `shingles` holds one set a
    row, from `shingle_sets`; rows in `skip` are left out.
    """
    index = NearIndex()
    return [
        (row, *match)
        for row, own in enumerate(shingles)
        if row not in skip and (match := index.match_or_add(row, own)) is not None
    ]


class NearIndex:
    """Finds the row most like another among those added to it."""

    def __init__(self) -> None:
        self._rows: dict[int, Shingles] = {}
        self._by_shingle: dict[int, list[int]] = defaultdict(list)

    def match_or_add(self, row: int, shingles: Shingles) -> tuple[int, float] | None:
        """The row most like this one; None where none is, and this one is added."""
        match = self.most_like(shingles)
        if match is None:
            self._rows[row] = shingles
            for shingle in _rarest(shingles):
                self._by_shingle[shingle].append(row)
        return match

    def most_like(self, shingles: Shingles) -> tuple[int, float] | None:
        """The most similar row and its Jaccard similarity, if that is at least `NEAR`."""
        candidates = {row for s in _rarest(shingles) for row in self._by_shingle.get(s, ())}
        best = None
        for row in sorted(candidates):
            other = self._rows[row]
            if min(len(other), len(shingles)) < NEAR * max(len(other), len(shingles)):
                continue
            shared = np.intersect1d(other, shingles, assume_unique=True).size
            similarity = shared / (len(other) + len(shingles) - shared)
            if similarity >= NEAR and (best is None or similarity > best[1]):
                best = row, similarity
        return best


def shingle_sets(rows: Sequence[Sequence[str]]) -> list[Shingles]:
    """Word triples of each row as numbers, the rarest of all rows first.

    Args:
        rows: The texts of each row (prompt, chosen, rejected). A triple counts as another in each
            of them, so that a pair and the same pair turned round are not alike.

    Returns:
        A sorted array without repeats for each row.
    """
    vocabulary: dict[str, int] = {}
    hashed = [
        np.unique(np.concatenate([_hash(part, side, vocabulary) for side, part in enumerate(row)]))
        for row in rows
    ]
    if not hashed:
        return []
    _, inverse, counts = np.unique(np.concatenate(hashed), return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    ends = np.cumsum([len(own) for own in hashed])
    return [np.sort(part) for part in np.split(rank[inverse], ends[:-1])]


def _sides(preference: Preference) -> tuple[str, str]:
    return normalised(text_of(preference.chosen)), normalised(text_of(preference.rejected))


def _hash(text: str, side: int, vocabulary: dict[str, int]) -> npt.NDArray[np.uint64]:
    words = [vocabulary.setdefault(w, len(vocabulary) + 1) for w in _TOKEN.findall(text.casefold())]
    ids = np.array([*words, *[0] * max(0, 3 - len(words))], dtype=np.uint64)
    triples = (ids[:-2] * _SPREAD + ids[1:-1]) * _SPREAD + ids[2:]
    return triples * _SPREAD + np.uint64(side)


def _rarest(shingles: Shingles) -> list[int]:
    count = len(shingles) - math.ceil(NEAR * len(shingles) - 1e-9) + 1
    rarest: list[int] = shingles[:count].tolist()
    return rarest


def _reaches(beats: dict[str, set[str]], start: str, goal: str) -> bool:
    """Whether `goal` is beaten, directly or through others, by `start`, or is `start`."""
    seen, waiting = {start}, [start]
    while waiting:
        answer = waiting.pop()
        if answer == goal:
            return True
        fresh = beats.get(answer, set()) - seen
        seen |= fresh
        waiting.extend(fresh)
    return False
