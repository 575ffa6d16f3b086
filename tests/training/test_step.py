"""The stages of a step, in the orders of a CPU and of a GPU, and how often they wait."""

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_unflatten

from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.models.parts import by_layer
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.gradient import Runtime
from mlx_dpo.training.layout import FORWARD_PRICE, GPU_FORWARD_PRICE
from mlx_dpo.training.optimizers import make_optimizer
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.peers import Alone
from mlx_dpo.training.step import Step
from tests.training import architectures
from tests.training.test_paths import LENGTH, PAIRS

WAYS: dict[str, dict[str, Any]] = {
    "whole": {"grad_clip": 0.1},
    "accumulating": {"grad_clip": 0.1, "batch_size": 2},
    "fused": {"fused": True},
}


VIEWS = {
    *("Broadcast", "Transpose", "Reshape", "ExpandDims", "Squeeze", "Slice", "Unflatten"),
    *("Flatten", "Split", "StopGradient", "Depends"),
}


class Counting(Runtime):
    """Counts what is begun, what is evaluated at once, and what is only waited for."""

    def __init__(self, ahead: int) -> None:
        super().__init__(ahead)
        self.begun = self.evaluated = self.waited = self.read = 0
        self._known: set[int] = set()
        self._held: list[Any] = []

    def begin(self, *trees: Any) -> None:
        self.begun += 1
        arrays = named_arrays(trees).values()
        self._known |= {id(array) for array in arrays}
        self._held += arrays  # an id is an array's as long as the array lives
        super().begin(*trees)

    def evaluate(self, *trees: Any) -> None:
        is_begun = all(id(array) in self._known for array in named_arrays(trees).values())
        self.waited += is_begun
        self.evaluated += not is_begun
        super().evaluate(*trees)

    def numbers(self, scalars: dict[str, mx.array]) -> dict[str, float]:
        self.read += 1
        return super().numbers(scalars)


def make_step(runtime: Runtime, optimizer: optim.Optimizer | None = None, **options: Any) -> Step:
    model = architectures.make("llama")
    optimizer = optimizer or make_optimizer("adamw", learning_rate=1e-3, weight_decay=0.01)
    optimizer.init(model.trainable_parameters())
    return Step(
        model,
        optimizer,
        FastPath(LENGTH, 0),
        lambda batch: mx.zeros((2, len(batch))),
        **{"beta": 0.1, "batch_size": 4, "runtime": runtime, **options},
    )


def bytes_of(step: Step) -> dict[str, bytes]:
    trees = {"weights": step.model.parameters(), "state": step.optimizer.state}
    return {name: np.array(array).tobytes() for name, array in named_arrays(trees).items()}


@pytest.mark.parametrize("way", WAYS)
def test_layers_begun_ahead_give_the_same_bytes(way: str) -> None:
    results = []
    for ahead in (0, 1, 2):
        step = make_step(Runtime(ahead), **WAYS[way])
        metrics = [step.take(PAIRS[:4], number=n, lr=1e-3) for n in range(2)]
        results.append((metrics, bytes_of(step)))
    assert results[1] == results[0]
    assert results[2] == results[0]


@pytest.mark.parametrize("way", ["whole", "fused"])
def test_a_gpu_evaluates_at_most_twice_a_layer_and_reads_scalars_once(way: str) -> None:
    """And once more for the loss, which a fused step must know before it changes a weight."""
    counting = Counting(ahead=1)
    step = make_step(counting, **WAYS[way])
    step.take(PAIRS[:4], number=0, lr=1e-3)
    layers = len(by_layer(step.model))
    assert counting.begun + counting.evaluated <= 2 * layers + 5
    assert counting.begun == (2 if way == "whole" else 1) * layers
    assert counting.read == (1 if way == "whole" else 2)


def test_a_cpu_begins_nothing_ahead() -> None:
    counting = Counting(ahead=0)
    make_step(counting).take(PAIRS[:4], number=0, lr=1e-3)
    assert (counting.begun, counting.waited) == (0, 0)


class Scaled(Alone):
    """Peers who add what this process has, some times over."""

    def __init__(self, first: float, second: float) -> None:
        super().__init__()
        self.first, self.second = first, second

    def sums(self, model: nn.Module, gradient: dict[str, mx.array]) -> dict[str, mx.array]:
        return {name: g * self.first + g * self.second for name, g in gradient.items()}


def test_the_summed_gradient_is_what_is_checked_clipped_and_applied() -> None:
    """Two machines with the same pairs: the sum of both gradients, halved, is that of one."""
    alone = make_step(Runtime(0), grad_clip=0.1)
    halves = make_step(Runtime(0), grad_clip=0.1, peers=Scaled(0.5, 0.5))
    doubled = make_step(Runtime(0), grad_clip=None, peers=Scaled(1, 1))
    expected = alone.take(PAIRS[:4], number=0, lr=1e-3)
    assert halves.take(PAIRS[:4], number=0, lr=1e-3) == expected
    assert bytes_of(halves) == bytes_of(alone)
    norm = doubled.take(PAIRS[:4], number=0, lr=1e-3)["grad_norm"]
    assert norm == pytest.approx(2 * expected["grad_norm"], rel=1e-6)


def test_a_gpu_launches_far_fewer_kernels_for_a_small_model() -> None:
    """By the graph of forward and backward: on a GPU a forward is dear, and rows share it.

    The shape is that of a model of 135 M parameters with few layers; views launch nothing.
    """
    model = architectures.build(
        "llama", hidden_size=72, num_hidden_layers=6, num_attention_heads=9, num_key_value_heads=3
    )
    rng = np.random.default_rng(0)
    lengths = [(64, 40, 52), (70, 30, 45), (90, 60, 33), (48, 35, 50)]
    pairs = [PreferenceExample(*(rng.integers(3, 60, n).tolist() for n in row)) for row in lengths]
    parameters = named_arrays(model.trainable_parameters())
    counts = []
    for price in (FORWARD_PRICE, GPU_FORWARD_PRICE):
        path = FastPath(256, 0, forward_price=price)
        entries: list[dict[str, Any]] = []

        def gradient(*arrays: mx.array, path: FastPath = path) -> list[mx.array]:
            model.update(tree_unflatten(list(zip(parameters, arrays, strict=True))))
            _, grads = nn.value_and_grad(model, lambda: path(model, pairs).sum())()
            return list(named_arrays(grads).values())

        mx.export_function(entries.append, gradient, *parameters.values())
        model.update(tree_unflatten(list(parameters.items())))
        names = [entry["name"] for entry in entries if entry["type"] == "primitive"]
        counts.append(sum(name not in VIEWS for name in names))
    assert counts[1] <= 0.7 * counts[0]


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """On a CPU a compilation takes a C++ compiler and seconds; the function is the same."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.usefixtures("uncompiled")
def test_compiled_adamw_is_mlx_s_own_but_for_rounding() -> None:
    plain, compiled = (
        make_step(
            Runtime(0),
            make_optimizer("adamw", learning_rate=1e-3, weight_decay=0.01, compiled=compiled),
        )
        for compiled in (False, True)
    )
    for step in (plain, compiled):
        for number in range(3):
            step.take(PAIRS[:4], number=number, lr=1e-3)
    expected = named_arrays([plain.model.parameters(), plain.optimizer.state])
    results = named_arrays([compiled.model.parameters(), compiled.optimizer.state])
    for name, array in results.items():
        np.testing.assert_allclose(
            np.array(array), np.array(expected[name]), rtol=2e-6, atol=2e-8, err_msg=name
        )
