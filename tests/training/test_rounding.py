"""Stochastic rounding: right on average, exact where it can be, the same again from the same state.

bfloat16 keeps seven digits behind the leading one: between 1 and 2 its step is 2**-7.
"""

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map, tree_unflatten

from mlx_dpo.models.parameters import load_arrays, named_arrays, save_arrays
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training import optimizers
from mlx_dpo.training.optimizers import StochasticRounding, stochastic_round
from mlx_dpo.training.trainer import DPOTrainer

STEP = 2.0**-7
DRAWS = 200_000


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_mean_of_many_roundings_is_the_number(share: float, sign: int) -> None:
    number = sign * (1 + share * STEP)
    rounded = stochastic_round(mx.full((DRAWS,), number), mx.random.key(3))
    found = np.array(rounded.astype(mx.float32), dtype=np.float64)
    assert set(found.tolist()) == {sign * 1.0, sign * (1 + STEP)}
    error = np.sqrt(share * (1 - share) / DRAWS) * STEP
    assert abs(found.mean() - number) < 5 * error


def test_what_bfloat16_holds_stays_itself() -> None:
    mx.random.seed(1)
    values = mx.concatenate(
        [
            mx.random.normal((1000,)).astype(mx.bfloat16),
            mx.array([0.0, -0.0, 3e38, -1e-38, float("inf"), -float("inf")], mx.bfloat16),
        ]
    )
    rounded = stochastic_round(values.astype(mx.float32), mx.random.key(0))
    assert mx.array_equal(rounded.view(mx.uint16), values.view(mx.uint16))


def test_a_nan_stays_one_whatever_its_bits() -> None:
    nans = mx.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], mx.uint32).view(mx.float32)
    assert mx.isnan(stochastic_round(nans, mx.random.key(0))).all()


def test_other_types_are_refused() -> None:
    with pytest.raises(ValueError, match="expected float32"):
        stochastic_round(mx.zeros(3, mx.bfloat16), mx.random.key(0))


def _descend(optimizer: optim.Optimizer, dtype: mx.Dtype) -> float:
    """Mean of 4000 weights after 100 steps of a constant gradient, each 1/78 of a bfloat16 step."""
    layer = nn.Linear(1, 4000, bias=False)
    layer.weight = mx.full((4000, 1), 1.5, dtype)
    for _ in range(100):
        optimizer.update(layer, {"weight": mx.ones((4000, 1), dtype)})
        mx.eval(layer.parameters(), optimizer.state)
    return float(np.array(layer.weight.astype(mx.float32), dtype=np.float64).mean())


def test_updates_too_small_for_bfloat16_add_up() -> None:
    def adamw() -> optim.Optimizer:
        return optim.AdamW(learning_rate=1e-4, weight_decay=0.0, bias_correction=True)

    exact = _descend(adamw(), mx.float32)
    assert exact == pytest.approx(1.49, abs=1e-4)
    assert _descend(adamw(), mx.bfloat16) == 1.5  # rounded to the nearest, nothing moves
    rounded = StochasticRounding(adamw(), seed=0)
    assert _descend(rounded, mx.bfloat16) == pytest.approx(exact, abs=1e-3)
    assert {a.dtype for a in named_arrays(rounded.state["weight"]).values()} == {mx.bfloat16}


@pytest.mark.parametrize("inner", [optim.AdamW, optim.Lion])
def test_a_large_array_is_updated_in_blocks_as_it_would_be_whole(
    inner: Callable[..., optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding draws other noise for blocks; without it they are the same to the bit."""

    def nearest(values: mx.array, key: mx.array) -> mx.array:
        return values.astype(mx.bfloat16)

    monkeypatch.setattr(optimizers, "stochastic_round", nearest)

    def updated(block: int) -> list[mx.array]:
        monkeypatch.setattr(optimizers, "_BLOCK", block)
        mx.random.seed(5)
        optimizer = StochasticRounding(inner(learning_rate=0.1, weight_decay=0.1), seed=0)
        layer = nn.Linear(3, 50, bias=False)
        layer.set_dtype(mx.bfloat16)
        for _ in range(3):
            optimizer.update(layer, {"weight": mx.random.normal((50, 3)).astype(mx.bfloat16)})
        return [layer.weight, *named_arrays(optimizer.state["weight"]).values()]

    for block, whole in zip(updated(3 * 7), updated(3 * 50), strict=True):
        assert block.dtype == mx.bfloat16
        assert mx.array_equal(block, whole)


def test_updating_in_blocks_keeps_a_few_of_them_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 2**20

    def peak(block: int) -> int:
        monkeypatch.setattr(optimizers, "_BLOCK", block)
        optimizer = StochasticRounding(optim.AdamW(learning_rate=0.1), seed=0)
        layer = nn.Linear(64, size // 64, bias=False)
        layer.set_dtype(mx.bfloat16)
        optimizer.init(layer.trainable_parameters())
        gradient = mx.ones((size // 64, 64), mx.bfloat16)
        mx.eval(layer.parameters(), optimizer.state, gradient)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        optimizer.update(layer, {"weight": gradient})
        for array in (optimizer.state["weight"]["m"], optimizer.state["weight"]["v"], layer.weight):
            mx.eval(array)
        return mx.get_peak_memory() - before

    # New weights and moments, each once in pieces and once joined, are 12 bytes a number at most.
    assert peak(size // 32) < 12 * size < 16 * size < peak(size)


def test_float32_weights_are_left_to_the_optimizer() -> None:
    plain = optim.Lion(learning_rate=1e-4)
    assert _descend(StochasticRounding(optim.Lion(learning_rate=1e-4), seed=0), mx.float32) == (
        _descend(plain, mx.float32)
    )


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: optim.AdamW(learning_rate=1e-3, bias_correction=True),
        lambda: optim.Lion(learning_rate=1e-3),
        lambda: optim.Adafactor(learning_rate=1e-3, relative_step=False),
    ],
    ids=["adamw", "lion", "adafactor"],
)
def test_a_resumed_run_goes_on_bit_by_bit_and_another_seed_differs(
    make_model: Callable[[], nn.Module],
    ragged_pairs: list[PreferenceExample],
    make_optimizer: Callable[[], optim.Optimizer],
    tmp_path: Path,
) -> None:
    def trainer(seed: int) -> DPOTrainer:
        models = [make_model(), make_model()]
        for model in models:
            model.update(tree_map(lambda a: a.astype(mx.bfloat16), model.parameters()))
        return DPOTrainer(
            models[0],
            ref_model=models[1],
            examples=ragged_pairs,
            max_seq_len=24,
            pad_id=0,
            beta=0.1,
            batch_size=4,
            max_steps=4,
            max_lr=1e-3,
            optimizer=StochasticRounding(make_optimizer(), seed=seed),
        )

    def weights(of: DPOTrainer) -> dict[str, bytes]:
        arrays = named_arrays(of.model.parameters())
        assert {a.dtype for a in arrays.values()} == {mx.bfloat16}
        return {name: np.array(a.view(mx.uint16)).tobytes() for name, a in arrays.items()}

    straight, stopped, resumed, other = trainer(5), trainer(5), trainer(5), trainer(6)
    straight.train()
    other.train()
    for _ in range(2):
        stopped.train_step()
    save_arrays(tmp_path / "weights.safetensors", stopped.model.parameters())
    save_arrays(tmp_path / "optimizer.safetensors", stopped.optimizer.state)
    resumed.model.load_weights(list(load_arrays(tmp_path / "weights.safetensors").items()))
    state = load_arrays(tmp_path / "optimizer.safetensors")
    resumed.optimizer.state = tree_unflatten(list(state.items()))
    resumed.restore(stopped.state())
    resumed.train()
    assert weights(resumed) == weights(straight)
    assert weights(other) != weights(straight)
