"""The order in which settings are tried, and what is said where none fits."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mlx_dpo.memory.settings import Settings
from mlx_dpo.memory.solve import NoSolution, candidates, changed, solve
from tests.memory.test_predict import make_gpt2, make_llama, predictor

ASKED = Settings(reference="copy", batch_size=4)
# What each lever takes away, in made-up bytes.
SAVED = {"cached": 100, "half": 10, "checkpoint": 200, "bfloat16": 250, "adafactor": 300}


def peak(settings: Settings) -> int:
    """A made-up peak: 1000, less what each lever saves; clipping holds 40."""
    total = 1000 - (0 if settings.grad_clip else 40)
    total -= SAVED["cached"] * (settings.reference == "cached")
    total -= SAVED["half"] * {4: 0, 2: 1, 1: 2}[settings.batch_size]
    total -= SAVED["checkpoint"] * settings.checkpoint_layers
    total -= SAVED["bfloat16"] * (settings.dtype == "bfloat16")
    return total - SAVED["adafactor"] * (settings.optimizer == "adafactor")


def bounds(settings: Settings) -> list[int]:
    return [peak(settings)]


def solved(budget: int, *fixed: str) -> dict[str, object]:
    found = solve(ASKED, budget, bounds, fixed)
    assert isinstance(found, Settings)
    assert peak(found) <= budget
    assert found.batch_size * found.grad_accumulation == 4
    return changed(ASKED, found)


def test_nothing_changes_where_what_was_asked_fits() -> None:
    assert solved(1000) == {}


def test_a_cheaper_lever_is_pulled_before_a_dearer_one() -> None:
    halved = {"batch_size": 2, "grad_accumulation": 2}
    again = {"reference": "cached", "checkpoint_layers": True}
    assert solved(900) == {"reference": "cached"}
    assert solved(890) == {"reference": "cached", **halved}
    assert solved(700) == again
    assert solved(690) == {**again, **halved}
    assert solved(650) == {"reference": "cached", "dtype": "bfloat16"}
    assert solved(450) == {**again, "dtype": "bfloat16"}
    assert solved(400) == {**again, "optimizer": "adafactor"}
    assert solved(150) == {**again, "dtype": "bfloat16", "optimizer": "adafactor"}


def test_what_was_given_by_hand_stays() -> None:
    assert "dtype" not in solved(500, "dtype")
    assert "batch_size" not in solved(890, "batch_size")


def test_clipping_is_offered_and_never_given_up() -> None:
    found = solve(ASKED, 100, bounds)
    assert isinstance(found, NoSolution)
    assert found.change == {"grad_clip": 0.0}
    assert found.smallest.grad_clip == ASKED.grad_clip
    assert all(s.grad_clip == ASKED.grad_clip for s in candidates(ASKED))


def test_what_would_fit_if_it_were_not_given_is_said_first() -> None:
    found = solve(ASKED, 310, bounds, ("checkpoint_layers",))
    assert isinstance(found, NoSolution)
    assert found.change == {"checkpoint_layers": True}


def test_nothing_is_offered_where_nothing_would_fit() -> None:
    found = solve(ASKED, 10, bounds)
    assert isinstance(found, NoSolution)
    assert found.change is None
    assert found.total == peak(replace(found.smallest))


def test_settings_that_hold_too_much_between_steps_are_not_traced() -> None:
    traced: list[Settings] = []

    def held_first(settings: Settings) -> Iterator[int]:
        yield 0 if settings.optimizer == "adafactor" else 2000
        traced.append(settings)
        yield peak(settings)

    assert isinstance(solve(ASKED, 900, held_first), Settings)
    assert {settings.optimizer for settings in traced} == {"adafactor"}


@pytest.mark.parametrize(
    ("make", "grad_clip"), [(make_llama, 0.0), (make_llama, 1.0), (make_gpt2, 1.0)]
)
def test_what_is_chosen_is_the_first_in_order_that_fits(make: Any, grad_clip: float) -> None:
    """Groups of settings are left out by their smallest: no budget may be answered otherwise."""
    asked, predict = Settings(reference="copy", grad_clip=grad_clip), predictor(make)
    order = list(candidates(asked))
    peaks = {settings: predict(settings).total for settings in order}
    assert all(max(predict.bounds(s)) == peak for s, peak in peaks.items())
    for total in sorted(set(peaks.values())):
        budget = round(1.001 * total)  # settings that differ by a kilobyte are as good
        chosen = solve(asked, budget, predict.bounds)
        assert chosen == next(s for s in order if peaks[s] <= budget)
    assert isinstance(solve(asked, min(peaks.values()) - 1, predict.bounds), NoSolution)
