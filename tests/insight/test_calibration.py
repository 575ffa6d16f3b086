"""Calibration is what a judge who doesn't know the sides would count."""

import math
import random

import numpy as np
import pytest

from mlx_dpo.insight.calibration import MOST_BINS, MOST_DRAWN, reliability


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def both_orders_ece(margins: list[float], num_bins: int) -> float:
    """By the definition: each pair in both orders, in bins that mirror one another at one half.

    One order says "the first won" with sigmoid(m), and it did; the other 1 - sigmoid(m), and it
    didn't. The mirrored bins hold the pairs that are least sure, the next ones, and so on.
    """
    by_sureness = sorted(margins, key=abs)
    sizes = [len(part) for part in np.array_split(np.arange(len(margins)), num_bins)]
    total, start = 0.0, 0
    for size in sizes:
        own = by_sureness[start : start + size]
        start += size
        high = [(sigmoid(m), 1.0) if m > 0 else (sigmoid(-m), 0.0) for m in own]
        low = [(1 - p, 1 - y) for p, y in high]
        for bin_ in (high, low):
            predicted = sum(p for p, _ in bin_) / len(bin_)
            happened = sum(y for _, y in bin_) / len(bin_)
            total += len(bin_) / (2 * len(margins)) * abs(happened - predicted)
    return total


@pytest.mark.parametrize("num_pairs", [1, 7, 20, 53, 240])
def test_folding_at_one_half_gives_the_ece_of_both_orders(num_pairs: int) -> None:
    rng = random.Random(num_pairs)
    margins = [rng.gauss(0.4, 1.5) for _ in range(num_pairs)]
    found = reliability(margins)
    assert found.ece == pytest.approx(both_orders_ece(margins, len(found.bins)))


def test_a_table_by_hand() -> None:
    """Margins of ln 3 and ln 9 are confidences of 0.75 and 0.9; twenty pairs make two bins."""
    margins = [math.log(3)] * 7 + [-math.log(3)] * 3 + [math.log(9)] * 10
    found = reliability(margins)
    assert [(b.num_pairs, b.right) for b in found.bins] == [(10, 7), (10, 10)]
    assert [b.confidence for b in found.bins] == pytest.approx([0.75, 0.9])
    assert found.ece == pytest.approx((0.05 + 0.1) / 2)


def test_bins_are_equal_in_count_and_hold_every_pair_once() -> None:
    found = reliability(np.linspace(-3, 5, 137))
    counts = [b.num_pairs for b in found.bins]
    assert sum(counts) == 137
    assert max(counts) - min(counts) <= 1
    assert len(counts) == MOST_BINS
    edges = [edge for b in found.bins for edge in (b.low, b.high)]
    assert edges == sorted(edges)


def test_an_untrained_policy_says_one_half_and_is_right_half_the_time() -> None:
    found = reliability([0.0] * 40)
    assert found.ece == 0.0
    assert all(b.right == b.num_pairs / 2 for b in found.bins)


def test_outcomes_drawn_as_predicted_show_the_error_that_chance_explains() -> None:
    rng = np.random.default_rng(1)
    for num_pairs in (60, 4000):
        confidence = rng.uniform(0.5, 0.95, num_pairs)
        eces = []
        for _ in range(30):
            sign = np.where(rng.random(num_pairs) < confidence, 1, -1)
            eces.append(reliability(sign * np.log(confidence / (1 - confidence))).ece)
        by_chance = reliability(np.log(confidence / (1 - confidence))).ece_by_chance
        assert by_chance == pytest.approx(np.mean(eces), rel=0.2)
    assert by_chance < 0.02


def test_margins_too_large_for_an_exponential_are_sure_and_not_an_overflow() -> None:
    found = reliability([1e6, -1e6])
    assert found.bins[0].confidence == 1.0
    assert found.ece == pytest.approx(0.5)


def test_the_error_by_chance_is_drawn_in_blocks_that_are_those_of_one_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_pairs = 5000
    margins = np.sort(np.abs(np.random.default_rng(2).normal(0.4, 1.5, num_pairs)))
    confidence = 1 / (1 + np.exp(-margins))
    parts = np.array_split(np.arange(num_pairs), MOST_BINS)
    outcomes = np.random.default_rng(0).random((1000, num_pairs)) < confidence
    eces = [
        sum(abs(drawn[part].sum() - confidence[part].sum()) for part in parts) / num_pairs
        for drawn in outcomes
    ]
    sizes: list[int] = []
    generator = np.random.default_rng(0)

    class Spy:
        def random(self, shape: tuple[int, ...]) -> np.ndarray:
            sizes.append(math.prod(shape))
            return generator.random(shape)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Spy())
    assert reliability(margins).ece_by_chance == pytest.approx(np.mean(eces), rel=1e-12)
    assert sum(sizes) == 1000 * num_pairs
    assert max(sizes) <= MOST_DRAWN < sum(sizes)
