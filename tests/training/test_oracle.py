"""Training runs against the float64 trajectories of PyTorch: whole runs, not single functions."""

from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.paths import FastPath, ScoringPath
from mlx_dpo.training.reference import Reference
from mlx_dpo.training.trainer import DPOTrainer
from tests import oracle

LEARNING_RATE = 1e-3
NUM_STEPS = 16
FAST = FastPath(oracle.MAX_SEQ_LEN, oracle.PAD_ID)

pytestmark = pytest.mark.parametrize("name", oracle.MODELS)


class Recorder(optim.SGD):
    """SGD that keeps the last gradient it was given."""

    def update(self, model: nn.Module, gradients: Any) -> None:
        self.gradients = named_arrays(gradients)
        super().update(model, gradients)


def make_trainer(
    name: str,
    *,
    accumulation: int = 1,
    optimizer: optim.Optimizer | None = None,
    path: ScoringPath | None = None,
    reference: Reference | None = None,
) -> DPOTrainer:
    return DPOTrainer(
        oracle.load_model(name),
        ref_model=None if reference else oracle.load_model(name),
        reference=reference,
        examples=oracle.pairs(name),
        max_seq_len=oracle.MAX_SEQ_LEN,
        pad_id=oracle.PAD_ID,
        beta=oracle.BETA,
        batch_size=4,
        max_steps=NUM_STEPS,
        max_lr=LEARNING_RATE,
        min_lr=LEARNING_RATE,
        grad_accumulation=accumulation,
        optimizer=optimizer,
        path=path,
    )


def rows_of_step(name: str, step: int, num_pairs: int) -> list[PreferenceExample]:
    """The oracle takes the rows in order and begins again after the last."""
    examples = oracle.pairs(name)
    return [examples[(step * num_pairs + i) % len(examples)] for i in range(num_pairs)]


@cache
def first_logprobs(name: str) -> Any:
    """Of the initial model for all 64 pairs, (2, 64)."""
    trainer = make_trainer(name)
    steps = [rows_of_step(name, step, 4) for step in range(NUM_STEPS)]
    return np.concatenate([trainer.score(trainer.model, batch) for batch in steps], axis=1)


def known_reference(name: str) -> Reference:
    """A reference that was computed before, as a run's is."""
    place = {id(pair): i for i, pair in enumerate(oracle.pairs(name))}
    return lambda batch: mx.array(first_logprobs(name)[:, [place[id(pair)] for pair in batch]])


def follow(trainer: DPOTrainer, name: str, num_pairs: int) -> list[Metrics]:
    return [trainer.train_step(rows_of_step(name, s, num_pairs)) for s in range(NUM_STEPS)]


@cache
def adamw_run(name: str) -> tuple[list[Metrics], list[Any]]:
    """Metrics of each step; policy log-probs of every fourth, before its update."""
    trainer = make_trainer(name)
    metrics, logprobs = [], []
    for step in range(NUM_STEPS):
        batch = rows_of_step(name, step, 4)
        if step % 4 == 3:
            logprobs.append(np.array(trainer.score(trainer.model, batch)))
        metrics.append(trainer.train_step(batch))
    return metrics, logprobs


def column(steps: list[Any], key: str) -> Any:
    return np.array([step[key] for step in steps])


def true_logprobs(step: dict[str, Any], who: str = "policy") -> Any:
    return np.array([step[f"{who}_chosen_logps"], step[f"{who}_rejected_logps"]])


def test_log_probs_of_every_pair_equal_float64(name: str) -> None:
    """The reference columns of 16 steps of 4 are the initial model on all 64 pairs."""
    for step, truth in enumerate(oracle.read(f"{name}/bs4.json")["steps"]):
        expected = true_logprobs(truth, "ref")
        found = first_logprobs(name)[:, 4 * step : 4 * step + 4]
        assert np.all(np.abs(found - expected) <= 5e-7 * np.abs(expected) + 1e-4)


def test_first_gradient_equals_float64_in_every_tensor(name: str) -> None:
    """The sharpest single check: direction and scale of every tensor, before any optimizer."""
    recorder = Recorder(learning_rate=LEARNING_RATE)
    trainer = make_trainer(name, optimizer=recorder)
    trainer.train_step(rows_of_step(name, 0, 4))
    expected = oracle.packed(name, "grads_step1", trainer.model)
    assert recorder.gradients.keys() == expected.keys()
    for tensor, truth in expected.items():
        error = oracle.largest(recorder.gradients[tensor] - truth)
        # Packing the oracle accounts for 1.6e-5.
        assert error <= 2e-5 * oracle.largest(truth), tensor


def test_first_gradient_norm_equals_float64(name: str) -> None:
    truth = oracle.read(f"{name}/bs4.json")["steps"][0]
    metrics = make_trainer(name).train_step(rows_of_step(name, 0, 4))
    assert metrics["grad_norm"] == pytest.approx(truth["grad_norm"], rel=1e-5)


def test_the_fast_path_has_the_first_gradient_of_float64(name: str) -> None:
    recorder = Recorder(learning_rate=LEARNING_RATE)
    trainer = make_trainer(name, optimizer=recorder, path=FAST)
    trainer.train_step(rows_of_step(name, 0, 4))
    for tensor, truth in oracle.packed(name, "grads_step1", trainer.model).items():
        error = oracle.largest(recorder.gradients[tensor] - truth)
        assert error <= 2e-5 * oracle.largest(truth), tensor


def test_the_fast_path_follows_the_losses_and_rewards_of_float64(name: str) -> None:
    truth = oracle.read(f"{name}/bs4.json")["steps"]
    metrics = follow(make_trainer(name, path=FAST, reference=known_reference(name)), name, 4)
    np.testing.assert_allclose(column(metrics, "loss"), column(truth, "loss"), rtol=0, atol=1e-4)
    for ours, theirs in (
        ("chosen_reward", "rewards_chosen"),
        ("rejected_reward", "rewards_rejected"),
    ):
        np.testing.assert_allclose(column(metrics, ours), column(truth, theirs), rtol=0, atol=2e-4)


def test_adamw_follows_the_losses_of_float64(name: str) -> None:
    truth = oracle.read(f"{name}/bs4.json")["steps"]
    metrics, _ = adamw_run(name)
    np.testing.assert_allclose(column(metrics, "loss"), column(truth, "loss"), rtol=0, atol=1e-4)


def test_adamw_follows_the_rewards_of_float64(name: str) -> None:
    truth = oracle.read(f"{name}/bs4.json")["steps"]
    metrics, _ = adamw_run(name)
    for ours, theirs in (
        ("chosen_reward", "rewards_chosen"),
        ("rejected_reward", "rewards_rejected"),
        ("reward_margin", "rewards_margins"),
    ):
        np.testing.assert_allclose(
            column(metrics, ours), column(truth, theirs), rtol=0, atol=2e-4, err_msg=ours
        )
    np.testing.assert_array_equal(column(metrics, "accuracy"), column(truth, "rewards_accuracies"))


def test_adamw_follows_the_log_probs_of_float64(name: str) -> None:
    truth = oracle.read(f"{name}/bs4.json")["steps"]
    _, logprobs = adamw_run(name)
    for found, step in zip(logprobs, truth[3::4], strict=True):
        np.testing.assert_allclose(found, true_logprobs(step), rtol=0, atol=5e-3)


def test_sgd_follows_float64_and_ends_at_its_weights(name: str) -> None:
    """SGD has no second moment to hide a wrong scale of the gradient."""
    truth = oracle.read(f"{name}/bs4_sgd.json")["steps"]
    sgd = optim.SGD(learning_rate=LEARNING_RATE)
    trainer = make_trainer(name, optimizer=sgd, reference=known_reference(name))
    before = named_arrays(oracle.load_model(name).parameters())
    metrics = follow(trainer, name, num_pairs=4)
    np.testing.assert_allclose(column(metrics, "loss"), column(truth, "loss"), rtol=0, atol=1e-5)
    after = named_arrays(trainer.model.parameters())
    for tensor, truth_moved in oracle.packed(name, "sgd_moved", trainer.model).items():
        error = oracle.largest(after[tensor] - before[tensor] - truth_moved)
        # 2e-7: norm weights lie near 1, where each of the 16 additions rounds by up to 6e-8.
        assert error <= 1e-4 * oracle.largest(truth_moved) + 2e-7, tensor


def test_two_batches_a_step_follow_float64_over_two_epochs(name: str) -> None:
    truth = oracle.read(f"{name}/bs4_ga2.json")["steps"]
    trainer = make_trainer(name, accumulation=2, path=FAST, reference=known_reference(name))
    metrics = follow(trainer, name, num_pairs=8)
    np.testing.assert_allclose(column(metrics, "loss"), column(truth, "loss"), rtol=0, atol=1e-4)
    np.testing.assert_allclose(column(metrics, "grad_norm"), column(truth, "grad_norm"), rtol=2e-4)
