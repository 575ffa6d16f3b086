"""A run from settings to a finished model."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.runs.run import train
from tests.runs.conftest import ORACLE, ScoringScreen, digest, finished, metrics, settings


def test_a_run_leaves_a_folder_that_mlx_lm_loads_and_generates_from(workplace: Path) -> None:
    import mlx_lm

    result = finished(out="out")
    model, tokenizer = mlx_lm.load("out")
    assert isinstance(mlx_lm.generate(model, tokenizer, "Hello", max_tokens=3), str)
    ids = mx.array([[1, 2, 3]])
    assert mx.array_equal(model(ids), result.job.policy(ids))


def test_a_run_keeps_its_settings_split_metrics_and_results(workplace: Path) -> None:
    result = finished(run_dir="run")
    names = {p.name for p in Path("run").iterdir()}
    assert names >= {"config.toml", "environment.json", "split.json", "metrics.jsonl"}
    assert names >= {"timings.jsonl", "held_out.json", "result.json", "step-000006", "step-000008"}
    split = json.loads(Path("run/split.json").read_text())
    assert sorted(map(int, split["train"] + split["held_out"])) == list(range(1, 15))
    assert len(metrics("run")) == 8
    record = json.loads(Path(result.job.out, "dpo.json").read_text())
    assert record["steps"] == 8
    assert record["held_out"]["accuracy"] == pytest.approx(
        np.mean(np.diff(result.policy - result.reference, axis=0) < 0)
    )


def test_the_sft_checkpoint_is_byte_identical_after_training(workplace: Path) -> None:
    before = {p.name: digest(p) for p in ORACLE.iterdir()}
    finished()
    assert {p.name: digest(p) for p in ORACLE.iterdir()} == before


def test_cached_and_copied_reference_give_the_same_trajectory(workplace: Path) -> None:
    finished(run_dir="cached", reference="cached", out="a")
    finished(run_dir="copy", reference="copy", out="b")
    for cached, copy in zip(metrics("cached"), metrics("copy"), strict=True):
        assert cached["loss"] == pytest.approx(copy["loss"], abs=2e-5)
        assert cached["reward_margin"] == pytest.approx(copy["reward_margin"], abs=2e-4)


def test_a_copied_reference_starts_at_exactly_log_2_with_zero_rewards(workplace: Path) -> None:
    finished(run_dir="run", reference="copy")
    first = metrics("run")[0]
    assert first["loss"] == np.float32(np.log(2))
    assert first["chosen_reward"] == first["rejected_reward"] == first["accuracy"] == 0.0


def test_a_second_run_on_the_same_model_and_pairs_reuses_the_reference(workplace: Path) -> None:
    first, second = ScoringScreen(), ScoringScreen()
    train(settings(out="a"), screen=first)
    train(settings(out="b", beta=0.3), screen=second)
    assert first.scored
    assert not second.scored


def test_a_dry_run_writes_nothing(workplace: Path) -> None:
    assert train(settings(), dry_run=True) is None
    assert sorted(p.name for p in workplace.iterdir()) == ["pairs.json"]
