"""Adapters trained against the trajectories of TRL and peft: forward, gradient, whole runs."""

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_dpo.models.adapters import Part, attach, parts_of
from mlx_dpo.models.folder import load_model
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.reference import cached_reference
from mlx_dpo.training.trainer import DPOTrainer
from tests import oracle

MODELS = ("llama", "qwen2")
PATHS: dict[str, Callable[[int, int], ScoringPath]] = {"plain": PlainPath, "fast": FastPath}
MAX_SEQ_LEN, PAD_ID = 64, 0
LOSS = {"sgd": 1e-5, "adamw": 1e-4}  # as in full fine-tuning

pytestmark = pytest.mark.parametrize("name", MODELS)
each_optimizer = pytest.mark.parametrize("optimizer", LOSS)
each_path = pytest.mark.parametrize("path", PATHS)


def truth(name: str) -> Any:
    return oracle.read(f"lora/{name}/trajectory.json")


@cache
def pairs(name: str) -> list[PreferenceExample]:
    rows = truth(name)["pairs"]
    return [PreferenceExample(r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for r in rows]


def adapter(name: str, moment: str) -> dict[str, Part]:
    """A and B of a moment (`start`, or the optimizer that made the end), as MLX names them."""
    stored = mx.load(str(oracle.FOLDER / "lora" / name / f"{moment}.safetensors"))
    assert isinstance(stored, dict)
    ending = ".lora_A.weight"
    return {
        peft.removeprefix("base_model.model.").removesuffix(ending): Part(
            a.T, stored[peft.replace("lora_A", "lora_B")].T, truth(name)["scale"]
        )
        for peft, a in stored.items()
        if peft.endswith(ending)
    }


def adapted(name: str, moment: str) -> nn.Module:
    model = load_model(oracle.FOLDER / "lora" / name / "model")
    attach(model, adapter(name, moment))
    return model


@cache
def run(name: str, optimizer: str, path: str) -> tuple[list[Metrics], DPOTrainer]:
    """The 16 steps with the pairs that TRL took."""
    recorded = truth(name)[optimizer]
    rate, steps = recorded["learning_rate"], truth(name)["order"]
    trainer = DPOTrainer(
        adapted(name, "start"),
        ref_model=None,
        reference=cached_reference(pairs(name), np.array(recorded["reference"], np.float32)),
        examples=pairs(name),
        max_seq_len=MAX_SEQ_LEN,
        pad_id=PAD_ID,
        beta=truth(name)["beta"],
        batch_size=2,
        grad_accumulation=2,
        max_steps=len(steps),
        max_lr=rate,
        min_lr=rate,
        optimizer=optim.SGD(rate) if optimizer == "sgd" else None,
        path=PATHS[path](MAX_SEQ_LEN, PAD_ID),
    )
    return [trainer.train_step([pairs(name)[i] for i in rows]) for rows in steps], trainer


def difference(steps: list[Metrics], recorded: Any, key: str) -> Any:
    found = np.array([step[key] for step in steps])
    return np.abs(found - [step[key] for step in recorded["steps"]])


def assert_same_logprobs(found: Any, expected: Any) -> None:
    expected = np.array(expected)
    assert np.all(np.abs(np.array(found) - expected) <= 5e-7 * np.abs(expected) + 1e-4)


@each_path
def test_an_adapter_with_b_zero_scores_as_the_reference(name: str, path: str) -> None:
    found = PATHS[path](MAX_SEQ_LEN, PAD_ID)(adapted(name, "start"), pairs(name))
    assert_same_logprobs(found, truth(name)["sgd"]["reference"])


@each_path
@each_optimizer
def test_a_trained_adapter_of_peft_scores_as_in_peft(name: str, optimizer: str, path: str) -> None:
    found = PATHS[path](MAX_SEQ_LEN, PAD_ID)(adapted(name, optimizer), pairs(name))
    assert_same_logprobs(found, truth(name)[optimizer]["policy_end"])


def test_every_linear_layer_of_the_blocks_trains_and_nothing_else(name: str) -> None:
    model = adapted(name, "start")
    parts = adapter(name, "start")
    assert parts_of(model).keys() == parts.keys()
    assert len(parts) == 7 * len(model.layers)
    trainable: Any = tree_flatten(model.trainable_parameters())
    assert sum(value.size for _, value in trainable) == sum(
        part.a.size + part.b.size for part in parts.values()
    )


@each_path
@each_optimizer
def test_the_losses_are_those_of_trl(name: str, optimizer: str, path: str) -> None:
    steps, _ = run(name, optimizer, path)
    recorded = truth(name)[optimizer]
    assert difference(steps, recorded, "loss").max() <= LOSS[optimizer]
    found = np.array([step["loss"] for step in steps])
    assert np.abs(found - recorded["loss_as_released"]).max() <= LOSS[optimizer]


@each_path
@each_optimizer
def test_gradient_norm_and_rewards_are_those_of_trl(name: str, optimizer: str, path: str) -> None:
    steps, _ = run(name, optimizer, path)
    recorded = truth(name)[optimizer]
    relative = difference(steps, recorded, "grad_norm") / [s["grad_norm"] for s in steps]
    assert relative[0] <= 1e-5
    assert relative.max() <= 2e-4
    for key in ("chosen_reward", "rejected_reward", "reward_margin"):
        assert difference(steps, recorded, key).max() <= 2e-4, key
    # Not of the first step, where all rewards are zero but for rounding.
    assert difference(steps, recorded, "accuracy")[1:].max() == 0


@each_path
@each_optimizer
def test_the_run_ends_at_the_log_probs_of_trl(name: str, optimizer: str, path: str) -> None:
    _, trainer = run(name, optimizer, path)
    found = np.array(trainer.score(trainer.model, pairs(name)))
    assert np.abs(found - truth(name)[optimizer]["policy_end"]).max() <= 5e-3


@each_path
@each_optimizer
def test_the_run_ends_at_the_matrices_of_peft(name: str, optimizer: str, path: str) -> None:
    _, trainer = run(name, optimizer, path)
    start, end, found = adapter(name, "start"), adapter(name, optimizer), parts_of(trainer.model)
    for module, part in found.items():
        for side in ("a", "b"):
            before, after = getattr(start[module], side), getattr(end[module], side)
            error = oracle.largest(getattr(part, side) - after)
            # 2e-7: entries lie near 0.2, where each of the 16 additions rounds by up to 7.5e-9.
            assert error <= 1e-4 * oracle.largest(after - before) + 2e-7, (module, side)
