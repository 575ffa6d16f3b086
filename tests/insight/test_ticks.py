"""Ticks are round numbers that hold the data between them."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.insight.axes import log_ticks, nice_ticks, tick_labels


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.0573, 0.6934, [0, 0.2, 0.4, 0.6, 0.8]),
        (-3.56, 1.33, [-4, -2, 0, 2]),
        (0, 4e-4, [0, 1e-4, 2e-4, 3e-4, 4e-4]),
        (0, 158, [0, 50, 100, 150, 200]),
        (7, 7, [2, 4, 6, 8, 10, 12]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_a_person_would_choose(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


finite = st.floats(-1e12, 1e12, allow_nan=False)


@given(finite, finite, st.integers(2, 10))
def test_ticks_hold_the_data_and_are_evenly_spaced(a: float, b: float, count: int) -> None:
    low, high = sorted((a, b))
    ticks = nice_ticks(low, high, count)
    slack = 1e-6 * max(abs(low), abs(high), ticks[-1] - ticks[0])
    assert ticks[0] - slack <= low <= high <= ticks[-1] + slack
    assert 2 <= len(ticks) <= count + 1
    steps = [b - a for a, b in pairwise(ticks)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-6, abs=slack)
    mantissa = float(f"{steps[0]:e}".split("e")[0])
    if low != high:
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-3


@pytest.mark.parametrize("bounds", [(1, 0), (math.nan, 1), (0, math.inf)])
def test_an_axis_needs_finite_bounds_in_order(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no axis"):
        nice_ticks(*bounds)


def test_logarithmic_ticks_are_one_two_five() -> None:
    assert log_ticks(0.01, 1.0) == [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert log_ticks(0.3, 0.3) == [0.3]
    for bad in ((0, 1), (2, 1)):
        with pytest.raises(ValueError, match="logarithmic"):
            log_ticks(*bad)


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([0.0, 50.0, 100.0], ["0", "50", "100"]),
        ([-0.2, -0.0, 0.2], ["\u22120.2", "0.0", "0.2"]),
        ([0, 1e-5, 2e-5], ["0", "1e\u22125", "2e\u22125"]),
        ([2.5e7], ["2.5e7"]),
        ([], []),
    ],
)
def test_labels_have_the_digits_they_need(ticks: list[float], labels: list[str]) -> None:
    assert tick_labels(ticks) == labels
