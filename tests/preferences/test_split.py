"""Held-out pairs: each kind gives its share, and no prompt lies on both sides."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.preferences.split import held_out
from mlx_dpo.records import Message, Preference

KINDS = {"tone": 20, "format": 10, "honesty": 5}


def pair(prompt: str, kind: str = "tone") -> Preference:
    return Preference((Message("user", prompt),), (), (), kind, id=prompt)


def pairs() -> list[Preference]:
    return [pair(f"{kind} {i}", kind) for kind, count in KINDS.items() for i in range(count)]


def out_by_kind(preferences: list[Preference], fraction: float, seed: int = 0) -> Counter[str]:
    out = held_out(preferences, fraction, seed)
    return Counter(p.kind for p, is_out in zip(preferences, out, strict=True) if is_out)


def test_each_kind_gives_its_share() -> None:
    assert out_by_kind(pairs(), 0.2) == {"tone": 4, "format": 2, "honesty": 1}


def test_each_kind_gives_at_least_one_pair() -> None:
    assert out_by_kind(pairs(), 0.01) == {"tone": 1, "format": 1, "honesty": 1}


def test_a_kind_with_one_prompt_stays_in_training() -> None:
    assert out_by_kind([*pairs(), pair("alone", "rare")], 0.5)["rare"] == 0


@pytest.mark.parametrize("fraction", [0.5, 0.9, 0.99])
def test_each_kind_keeps_a_pair_to_train_on(fraction: float) -> None:
    out = out_by_kind(pairs(), fraction)
    assert all(out[kind] < count for kind, count in KINDS.items())


def test_fraction_0_holds_nothing_out() -> None:
    assert held_out(pairs(), 0.0) == [False] * len(pairs())


def test_the_choice_follows_from_the_seed() -> None:
    first = held_out(pairs(), 0.2, seed=3)
    assert held_out(pairs(), 0.2, seed=3) == first
    assert held_out(pairs(), 0.2, seed=4) != first


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), min_size=1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_a_prompt_never_lies_on_both_sides(
    rows: list[tuple[str, str]], fraction: float, seed: int
) -> None:
    """Though rows of one prompt may name several kinds."""
    preferences = [pair(prompt, kind) for prompt, kind in rows]
    out = held_out(preferences, fraction, seed)
    assert len(out) == len(rows)
    sides: dict[str, set[bool]] = {}
    for (prompt, _), is_out in zip(rows, out, strict=True):
        sides.setdefault(prompt, set()).add(is_out)
    assert all(len(side) == 1 for side in sides.values())
    assert not all(out)
