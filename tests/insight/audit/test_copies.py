"""Rows that say the same twice are found, all of them, and nothing else."""

import random
import re
from collections.abc import Sequence

import pytest

from mlx_dpo.insight.audit import copies
from mlx_dpo.insight.audit.copies import contradictions, near_copies, shingle_sets
from tests.insight.conftest import pair

Shingle = tuple[int, tuple[str, ...]]


def triples(row: Sequence[str]) -> set[Shingle]:
    found: set[Shingle] = set()
    for side, text in enumerate(row):
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        words += [""] * (3 - len(words))
        found |= {(side, tuple(words[i : i + 3])) for i in range(len(words) - 2)}
    return found


def brute_force(rows: Sequence[Sequence[str]]) -> list[tuple[int, int, float]]:
    """Each row against all earlier ones that are not like one before them."""
    sets = [triples(row) for row in rows]
    kept: list[int] = []
    found = []
    for number, own in enumerate(sets):
        like = [(len(own & sets[k]) / len(own | sets[k]), -k) for k in kept]
        best = max(like, default=(0.0, 0))
        if best[0] >= copies.NEAR:
            found.append((number, -best[1], best[0]))
        else:
            kept.append(number)
    return found


@pytest.mark.parametrize("seed", range(6))
def test_near_copies_are_those_that_comparing_all_with_all_finds(seed: int) -> None:
    """Texts of few words, changed here and there: many similarities close to the limit."""
    rng = random.Random(seed)
    rows: list[list[str]] = []
    for _ in range(120):
        if rows and rng.random() < 0.6:
            row = [text.split() for text in rng.choice(rows)]
            for _ in range(rng.randint(1, 3)):
                side = rng.choice(row)
                side[rng.randrange(len(side))] = rng.choice("abcdefgh")
            rows.append([" ".join(side) for side in row])
        else:
            rows.append([" ".join(rng.choices("abcdefgh", k=rng.randint(1, 14))) for _ in range(3)])
    expected = brute_force(rows)
    found = near_copies(shingle_sets(rows), skip=set())
    assert len(expected) > 10
    assert [places[:2] for places in found] == [places[:2] for places in expected]
    assert [like for *_, like in found] == pytest.approx([like for *_, like in expected])


def test_a_pair_turned_round_is_no_near_copy_of_itself() -> None:
    long, other = "one two three four five six seven", "eight nine ten eleven twelve thirteen"
    rows = [("Say a number.", long, other), ("Say a number.", other, long)]
    assert near_copies(shingle_sets(rows), skip=set()) == []


def test_a_thousand_like_rows_all_name_the_first() -> None:
    words = " ".join(f"w{n}" for n in range(60))
    rows = [(words, f"{words} {n}", words) for n in range(1000)]
    found = near_copies(shingle_sets(rows), skip=set())
    assert {(row, first) for row, first, _ in found} == {(n, 0) for n in range(1, 1000)}


def test_copies_ignore_case_space_and_the_full_stop_and_nothing_inside() -> None:
    rows = [
        pair("What is 7 - 5?", "2.", "3."),
        pair("what is  7 - 5", "2", " 3"),
        pair("What is 7 + 5?", "2.", "3."),
        pair("What is 7 - 5?", "3.", "2."),
    ]
    assert copies.copies(rows) == [(1, 0)]


def test_contradictions_are_circles_and_chains_are_none() -> None:
    rows = [
        pair("p", "a", "b"),
        pair("p", "b", "c"),
        pair("p", "a", "c"),
        pair("q", "a", "b"),
        pair("q", "B.", "a"),
        pair("r", "a", "b"),
        pair("r", "b", "c"),
        pair("r", "c", "a"),
        pair("r", "a", "x"),
        pair("s", "same", "Same."),
        pair("t", "b", "a"),
    ]
    assert contradictions(rows) == [(3, 4), (5, 6, 7), (9,)]


def test_no_rows_have_no_shingles() -> None:
    assert shingle_sets([]) == []
