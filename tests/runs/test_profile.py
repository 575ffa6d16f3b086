"""How long an epoch takes, estimated from a few steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_dpo.preferences.batches import EpochOrder
from mlx_dpo.preferences.store import lengths
from mlx_dpo.runs import profile
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.job import prepare
from mlx_dpo.runs.profile import calibrate
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.trainer import DPOTrainer
from tests.runs.conftest import ORACLE, ROWS


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.chdir(tmp_path)
    Path("pairs.json").write_text(json.dumps(ROWS))
    return RunConfig(
        model=str(ORACLE), data="pairs.json", batch_size=2, grad_accumulation=2, eval_fraction=0.25
    )


def tokens(examples: Any) -> int:
    return FastPath(512, 0).work(list(examples)).computed_tokens


@pytest.mark.parametrize("reference", ["cached", "copy"])
def test_time_that_grows_with_tokens_is_estimated_exactly(
    config: RunConfig, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def train_step(trainer: DPOTrainer, examples: list[Any]) -> None:
        for start in range(0, len(examples), 2):
            clock[0] += 3.0 * tokens(examples[start : start + 2])

    def score(trainer: DPOTrainer, model: Any, examples: list[Any]) -> mx.array:
        clock[0] += tokens(examples)
        return mx.zeros((2, len(examples)))

    monkeypatch.setattr(profile.time, "perf_counter", lambda: clock[0])  # type: ignore[attr-defined]
    monkeypatch.setattr(DPOTrainer, "train_step", train_step)
    monkeypatch.setattr(DPOTrainer, "score", score)
    calibration = calibrate(replace(config, reference=reference))
    job = prepare(config, keep=False)
    num_train, num_all = len(job.train.examples), len(job.examples)
    order = EpochOrder(
        num_train, 4, config.seed, lengths=lengths(job.train.examples), micro_batch=2
    )
    whole = sum(tokens(job.train.examples[i] for i in rows) for rows in order.first_epoch())
    assert calibration.steps_per_epoch == -(-num_train // 4)
    assert calibration.epoch_seconds == pytest.approx(3 * whole)
    expected = whole * num_all / num_train if reference == "cached" else 0
    assert calibration.reference_seconds == pytest.approx(expected)


def test_calibrating_writes_nothing_and_leaves_the_data_as_it_was(config: RunConfig) -> None:
    calibration = calibrate(config, steps=1)
    assert calibration.step_seconds > 0
    assert calibration.reference_seconds > 0
    assert [path.name for path in Path().iterdir()] == ["pairs.json"]
