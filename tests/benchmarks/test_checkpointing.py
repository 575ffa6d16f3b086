"""What computing again costs: both kinds of step are made by turns, and reported as one row."""

from itertools import count

import pytest

from benchmarks import checkpointing
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.trainer import DPOTrainer


def test_a_row_holds_both_medians_and_the_range_of_neighbouring_ratios(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, steps, kinds, take_step = [0.0], count(), [], DPOTrainer.train_step
    # After one step of each to warm up: what the steps take, kept and computed again by turns.
    seconds = (100, 100, 2, 3, 4, 5, 2, 4)

    def timed_step(trainer: DPOTrainer) -> dict[str, float]:
        assert isinstance(trainer.path, FastPath)
        kinds.append(trainer.path.checkpoint)
        clock[0] += seconds[next(steps)]
        return take_step(trainer)

    monkeypatch.setattr(DPOTrainer, "train_step", timed_step)
    monkeypatch.setattr(checkpointing, "now", lambda: clock[0])
    # Ratios 3 / 2, 5 / 4 and 4 / 2.
    assert checkpointing.row("tiny", steps=3) == ["tiny", "2.00", "4.00", "1.50", "1.25", "2.00"]
    assert kinds == [False, True] * 4
