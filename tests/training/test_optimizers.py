"""Optimizers by name, and updates that don't wait for the whole gradient."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.errors import NonFiniteError
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.models.parts import by_layer
from mlx_dpo.runs import config
from mlx_dpo.runs.checkpoint import Checkpoints, restore
from mlx_dpo.training.optimizers import make_optimizer
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.trainer import DPOTrainer
from tests.training import architectures
from tests.training.test_paths import LENGTH, PAIRS


def llama() -> nn.Module:
    return architectures.make("llama")


def heavy() -> nn.Module:
    """Whose weights, 7 MB, take far more than what a few short pairs activate."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 8, "intermediate_size": 384}
    return architectures.build("llama", **sizes, num_key_value_heads=4)


def trainer(
    name: str = "adamw", make: Callable[[], nn.Module] = llama, **options: Any
) -> DPOTrainer:
    return DPOTrainer(
        make(),
        ref_model=make(),
        examples=PAIRS[:6],
        max_seq_len=LENGTH,
        pad_id=0,
        beta=0.1,
        batch_size=2,
        max_steps=8,
        max_lr=1e-3,
        optimizer=make_optimizer(name, learning_rate=1e-3, weight_decay=0.01),
        path=FastPath(LENGTH, 0),
        **options,
    )


def bytes_of(tree: Any) -> dict[str, bytes]:
    return {name: np.array(array).tobytes() for name, array in named_arrays(tree).items()}


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name: str) -> None:
    tuned = trainer(name)
    first = tuned.evaluate(PAIRS[:6])["loss"]
    tuned.train()
    assert tuned.evaluate(PAIRS[:6])["loss"] < first


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_every_optimizer_resumes_to_the_byte(name: str, tmp_path: Path) -> None:
    straight = trainer(name)
    straight.train()
    first = trainer(name)
    for _ in range(3):
        first.train_step()
    saved = Checkpoints(tmp_path).save(first, {})
    second = trainer(name)
    restore(saved, second)
    second.train()
    assert bytes_of(second.model.parameters()) == bytes_of(straight.model.parameters())
    assert bytes_of(second.optimizer.state) == bytes_of(straight.optimizer.state)


@pytest.mark.parametrize("name", config.OPTIMIZERS)
def test_a_fused_update_is_the_update(name: str) -> None:
    """No rounding apart: the same operations, in another order of evaluation."""
    whole, fused = trainer(name), trainer(name, fused_update=True)
    for _ in range(4):
        expected, found = whole.train_step(), fused.train_step()
        assert found.pop("grad_norm") == pytest.approx(expected.pop("grad_norm"), rel=1e-6)
        assert found == expected
    assert bytes_of(fused.model.parameters()) == bytes_of(whole.model.parameters())
    assert bytes_of(fused.optimizer.state) == bytes_of(whole.optimizer.state)


def test_gradients_are_evaluated_from_the_last_layer_to_the_embedding() -> None:
    """By number, not by name: layer 9 does not come before layer 10."""
    model = nn.Module()
    model.lm_head = nn.Linear(2, 3, bias=False)
    model.trunk = nn.Module()
    model.trunk.embed = nn.Embedding(3, 2)
    model.trunk.layers = [nn.Linear(2, 2) for _ in range(11)]
    names = by_layer(model)
    assert names[0] == ["lm_head.weight"]
    assert names[1] == ["trunk.layers.10.bias", "trunk.layers.10.weight"]
    assert names[2] == ["trunk.layers.9.bias", "trunk.layers.9.weight"]
    assert names[-1] == ["trunk.embed.weight"]
    assert len(names) == 13


def test_a_fused_update_keeps_fewer_gradients_alive() -> None:
    """Seen where a batch is short: in a long one the activations set the peak."""
    peaks = [smallest_peak(trainer(make=heavy, fused_update=fused)) for fused in (False, True)]
    assert peaks[1] < 0.8 * peaks[0]


def smallest_peak(tuned: DPOTrainer) -> int:
    """Bytes that a step takes above what it finds, in the step that takes least."""
    tuned.train_step()
    peaks = []
    for _ in range(6):
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        tuned.train_step()
        peaks.append(mx.get_peak_memory() - before)
    return min(peaks)


def test_a_loss_that_is_not_finite_is_noticed_before_a_fused_update() -> None:
    tuned = trainer(fused_update=True)
    before = bytes_of(tuned.model.parameters())
    tuned.stages.reference = lambda batch: mx.full((2, len(batch)), math.nan)
    with pytest.raises(NonFiniteError, match="nothing was applied"):
        tuned.train_step()
    assert bytes_of(tuned.model.parameters()) == before
    assert tuned.step == 0


def test_fusing_and_clipping_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="clipping needs the whole gradient"):
        trainer(fused_update=True, grad_clip=1.0)


def test_there_is_no_other_optimizer() -> None:
    with pytest.raises(ValueError, match="no optimizer 'sgd'"):
        make_optimizer("sgd", learning_rate=1.0, weight_decay=0.0)
    for name in config.OPTIMIZERS:
        make_optimizer(name, learning_rate=1.0, weight_decay=0.0)
