"""A step that is not finite is named by its pair, and left out if allowed."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_dpo.errors import NonFiniteError
from mlx_dpo.runs.run import train
from mlx_dpo.training.trainer import DPOTrainer
from tests.runs.conftest import settings


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> int:
    """The reference says NaN for the chosen answer of one pair of a step; that step."""
    real = DPOTrainer.train_step

    def train_step(self: DPOTrainer, examples: object = None) -> object:
        if self.step == 4 and self.order.position == 4 * 2:
            victim = self.examples[self.order.peek()[1]]
            sound = self.reference

            def reference(batch: object) -> mx.array:
                values = sound(batch)  # type: ignore[arg-type]
                for row, example in enumerate(batch):  # type: ignore[arg-type, var-annotated]
                    if example == victim:
                        values[0, row] = float("nan")
                return values

            self.stages.reference = reference
        return real(self, examples)  # type: ignore[arg-type]

    monkeypatch.setattr(DPOTrainer, "train_step", train_step)
    return 4


def test_what_was_not_finite_is_named_by_step_pair_and_log_prob(
    workplace: Path, spoiled: int
) -> None:
    with pytest.raises(NonFiniteError, match=r"not finite: reference_chosen of pair \d+; see run/"):
        train(settings(run_dir="run"))
    diagnosis = json.loads(Path(f"run/nonfinite-{spoiled:06d}.json").read_text())
    assert diagnosis["step"] == spoiled
    assert [pair["not_finite"] for pair in diagnosis["pairs"]] == [[], ["reference_chosen"]]
    assert diagnosis["weights"] == []
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == spoiled + 1  # and held out


def test_a_step_that_is_not_finite_can_be_left_out_and_is_counted(
    workplace: Path, spoiled: int
) -> None:
    # An epoch of six steps, in which the pair comes once.
    assert train(settings(run_dir="run", skip_nonfinite=1, steps=6)) is not None
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "skipped" in row] == [spoiled]
    assert [row["step"] for row in rows if "loss" in row] == [0, 1, 2, 3, 5]


def test_a_step_that_was_applied_is_never_left_out(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finite weights say nothing: the optimizer's state may hold infinity."""
    real = DPOTrainer.train_step

    def overflowing(self: DPOTrainer, examples: object = None) -> object:
        monkeypatch.setattr(self.stages, "_norm_of", lambda squares: float("inf"))
        return real(self, examples)  # type: ignore[arg-type]

    monkeypatch.setattr(DPOTrainer, "train_step", overflowing)
    with pytest.raises(NonFiniteError, match="weights in memory are spoilt"):
        train(settings(run_dir="run", skip_nonfinite=1, grad_clip=0.0, grad_accumulation=1))
