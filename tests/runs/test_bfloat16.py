"""bfloat16 runs: they start at log 2, resume to the byte, and their weights move."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest

from mlx_dpo import load
from mlx_dpo.convert.conversion import Options, convert
from mlx_dpo.convert.sources import load_folder
from mlx_dpo.errors import StoppedError
from mlx_dpo.models.parameters import load_arrays, named_arrays
from mlx_dpo.preferences.chat import pad_id_of
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.run import train
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.trainer import DPOTrainer
from tests.runs.conftest import ORACLE, StopAfter, digest, finished, metrics, settings


@pytest.mark.parametrize("reference", ["cached", "copy"])
def test_it_starts_at_exactly_log_2_and_learns(workplace: Path, reference: str) -> None:
    run = {"dtype": "bfloat16", "reference": reference, "grad_accumulation": 2}
    finished(run_dir="run", steps=4, eval_fraction=0.0, **run)
    rows = metrics("run")
    assert rows[0]["loss"] == np.float32(np.log(2))
    assert rows[0]["chosen_reward"] == rows[0]["rejected_reward"] == rows[0]["accuracy"] == 0.0
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_held_out_figures_start_at_log_2_too(workplace: Path) -> None:
    """Scored in the batches that the evaluation takes, an untrained policy has no reward at all."""
    result = finished(dtype="bfloat16", learning_rate=1e-30, steps=1)
    assert result.policy.size
    assert np.array_equal(result.policy, result.reference)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw", "grad_clip": 1e-2},
        {"optimizer": "lion", "grad_clip": 0.0, "checkpoint_layers": True},
        {"optimizer": "adafactor", "grad_clip": 0.0},
    ],
    ids=lambda options: options["optimizer"],
)
def test_a_stopped_and_resumed_run_is_byte_equal_to_a_straight_one(
    workplace: Path, options: dict[str, Any]
) -> None:
    options = {"dtype": "bfloat16", "steps": 4, "save_every": 2, "eval_fraction": 0.0, **options}
    finished(run_dir="straight", out="a", **options)
    with pytest.raises(StoppedError):
        train(settings(run_dir="broken", out="b", **options), screen=StopAfter(2))
    train(settings(run_dir="broken", out="b", **options), resume=True)
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    for name in ("metrics.jsonl", "step-000004/optimizer.safetensors"):
        assert digest(Path("straight", name)) == digest(Path("broken", name))
    state = load_arrays(Path("straight/step-000004/optimizer.safetensors"))
    floats = {a.dtype for a in state.values() if mx.issubdtype(a.dtype, mx.floating) and a.size > 1}
    assert floats == {mx.bfloat16}


def test_another_seed_rounds_otherwise(workplace: Path) -> None:
    """One batch of all pairs: the order is no difference, and the noise is."""
    all_pairs: dict[str, Any] = {"dtype": "bfloat16", "steps": 2, "eval_fraction": 0.0}
    all_pairs |= {"batch_size": 14, "grad_clip": 0.0}
    for seed in (0, 1):
        finished(out=f"seed-{seed}", seed=seed, **all_pairs)
    assert digest(Path("seed-0/model.safetensors")) != digest(Path("seed-1/model.safetensors"))


def test_the_finished_folder_is_bfloat16_and_every_command_reads_it(workplace: Path) -> None:
    import mlx_lm

    result = finished(out="out", dtype="bfloat16", steps=1, eval_fraction=0.0)
    assert {a.dtype for a in load_arrays(Path("out/model.safetensors")).values()} == {mx.bfloat16}
    assert json.loads(Path("out/dpo.json").read_text())["settings"]["dtype"] == "bfloat16"
    model, _ = mlx_lm.load("out")
    ids = mx.array([[1, 2, 3]])
    assert mx.array_equal(model(ids), result.job.policy(ids))
    wide, _ = load("out")
    trained = named_arrays(result.job.policy.parameters())
    for name, value in named_arrays(wide.parameters()).items():
        assert value.dtype == mx.float32
        assert mx.array_equal(value, trained[name].astype(mx.float32))
    said: list[str] = []
    convert(Path("out"), Path("torch"), Options(to="torch"), said.append)
    assert any("bit-identical" in line for line in said)


def _moved(dtype: str, optimizer: optim.Optimizer, pairs: list[PreferenceExample]) -> Any:
    """How each weight of the oracle's llama moves in ten steps at a learning rate of 5e-7."""
    policy, tokenizer = load_folder(ORACLE, dtype)
    before = {k: a.astype(mx.float32) for k, a in named_arrays(policy.parameters()).items()}
    DPOTrainer(
        policy,
        ref_model=load_folder(ORACLE, dtype)[0],
        examples=pairs,
        max_seq_len=32,
        pad_id=pad_id_of(tokenizer),
        beta=0.1,
        batch_size=4,
        max_steps=10,
        max_lr=5e-7,
        optimizer=optimizer,
    ).train()
    after = named_arrays(policy.parameters())
    return mx.concatenate([(after[k].astype(mx.float32) - before[k]).reshape(-1) for k in before])


def test_weights_move_at_5e_7_where_plain_bfloat16_stands_still(
    ragged_pairs: list[PreferenceExample],
) -> None:
    """The whole move along float32's, in units of it: few weights jump, and each of them far."""

    def adamw() -> optim.Optimizer:
        return make_optimizer("adamw", learning_rate=5e-7, weight_decay=0.0)

    exact = _moved("float32", adamw(), ragged_pairs)
    along = {
        name: float((moved * mx.sign(exact)).sum() / mx.abs(exact).sum())
        for name, moved in (
            ("plain", _moved("bfloat16", adamw(), ragged_pairs)),
            ("rounded", _moved("bfloat16", StochasticRounding(adamw(), seed=0), ragged_pairs)),
        )
    }
    assert along["plain"] < 0.1
    assert along["rounded"] == pytest.approx(1.0, abs=0.3)
