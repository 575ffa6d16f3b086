"""Log-probs that are not finite, a stop inside an accumulated step, and a result already there."""

import json
import os
import signal
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_dpo.errors import DiskError, NonFiniteError, StoppedError
from mlx_dpo.runs import checkpoint
from mlx_dpo.runs.callbacks import Save
from mlx_dpo.runs.run import train
from mlx_dpo.training.trainer import DPOTrainer
from tests.runs.conftest import settings
from tests.runs.test_run import digest


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
    found = json.loads(Path(f"run/nonfinite-{spoiled:06d}.json").read_text())
    assert found["step"] == spoiled
    assert [pair["not_finite"] for pair in found["pairs"]] == [[], ["reference_chosen"]]
    assert found["weights"] == []
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == spoiled + 1  # and held out


def test_a_step_that_is_not_finite_can_be_left_out_and_is_counted(
    workplace: Path, spoiled: int
) -> None:
    # An epoch of six steps, in which the pair comes once.
    assert train(settings(run_dir="run", skip_nonfinite=1, steps=6)) is not None
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "skipped" in row] == [spoiled]
    assert [row["step"] for row in rows if "loss" in row] == [0, 1, 2, 3, 5]


def test_a_stop_inside_an_accumulated_step_gives_the_step_up_and_makes_it_again(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"grad_accumulation": 3, "steps": 4}
    train(settings(run_dir="straight", out="a", **asked))
    batches = []
    real = Save.before_batch

    def before_batch(self: Save, trainer: DPOTrainer) -> None:
        batches.append(trainer.step)
        if batches.count(2) == 2:  # the second batch of the third step
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Save, "before_batch", before_batch)
        with pytest.raises(StoppedError, match="after step 2 of 4"):
            train(settings(run_dir="broken", out="b", **asked))
    assert batches.count(2) == 2
    train(settings(run_dir="broken", out="b", **asked), resume=True)
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    assert digest(Path("straight/metrics.jsonl")) == digest(Path("broken/metrics.jsonl"))


def test_a_run_that_was_killed_after_its_model_was_written_resumes_without_overwrite(
    workplace: Path,
) -> None:
    train(settings(run_dir="run", out="out"))
    Path("run/result.json").unlink()
    before = digest(Path("out/model.safetensors"))
    assert train(settings(run_dir="run", out="out"), resume=True) is not None
    assert digest(Path("out/model.safetensors")) == before


def test_a_run_without_room_for_its_checkpoints_does_not_begin(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 10**6)
    with pytest.raises(DiskError, match=r"this run writes up to .* make room first") as raised:
        train(settings(run_dir="run"))
    assert raised.value.exit_code == 7
    assert not Path("run").exists()
