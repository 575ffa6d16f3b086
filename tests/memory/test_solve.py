"""The order in which settings are tried, and what is said where none fits."""

from dataclasses import replace

from mlx_dpo.memory.predict import Settings
from mlx_dpo.memory.solve import NoSolution, Solution, candidates, changed, solve

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


def solved(budget: int, *fixed: str) -> dict[str, object]:
    found = solve(ASKED, budget, predict=peak, least=lambda s: 0, fixed=fixed)
    assert isinstance(found, Solution)
    assert found.total <= budget
    assert found.settings.batch_size * found.settings.grad_accumulation == 4
    return changed(ASKED, found.settings)


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
    found = solve(ASKED, 100, predict=peak, least=lambda s: 0)
    assert isinstance(found, NoSolution)
    assert found.change == {"grad_clip": 0.0}
    assert found.smallest.grad_clip == ASKED.grad_clip
    assert all(s.grad_clip == ASKED.grad_clip for s in candidates(ASKED))


def test_what_would_fit_if_it_were_not_given_is_said_first() -> None:
    found = solve(ASKED, 310, predict=peak, least=lambda s: 0, fixed=("checkpoint_layers",))
    assert isinstance(found, NoSolution)
    assert found.change == {"checkpoint_layers": True}


def test_nothing_is_offered_where_nothing_would_fit() -> None:
    found = solve(ASKED, 10, predict=peak, least=lambda s: 0)
    assert isinstance(found, NoSolution)
    assert found.change is None
    assert found.total == peak(replace(found.smallest))


def test_settings_that_hold_too_much_between_steps_are_not_predicted() -> None:
    asked: list[Settings] = []

    def predict(settings: Settings) -> int:
        asked.append(settings)
        return peak(settings)

    def held(settings: Settings) -> int:
        return 0 if settings.optimizer == "adafactor" else 2000

    assert isinstance(solve(ASKED, 900, predict=predict, least=held), Solution)
    assert {settings.optimizer for settings in asked} == {"adafactor"}
