"""The update of a step: the gradient's norm, and a layer updated as its gradient is there."""

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from mlx_dpo.models.parameters import named_arrays

# Up to and with a layer's number; the whole name elsewhere.
_LAYER = re.compile(r".*?\.\d+(?=\.)|.*")


def global_norm(grads: Any) -> float:
    """L2 norm over every gradient of the tree, summed in float32."""
    squares = [mx.square(g.astype(mx.float32)).sum() for g in named_arrays(grads).values()]
    return float(mx.sqrt(mx.stack(squares).sum()))


def by_layer(names: list[str]) -> list[list[str]]:
    """Names of parameters by layer, the last layer first: as gradients become known."""
    layers: dict[str, list[str]] = {}
    for name in reversed(names):
        layers.setdefault(_LAYER.match(name)[0], []).append(name)  # type: ignore[index]
    return list(layers.values())


def evaluate_layer(
    model: nn.Module, optimizer: optim.Optimizer, grads: dict[str, mx.array]
) -> float:
    """Evaluate some gradients, then the updates that wait for them; the sum of their squares.

    In this order: MLX would begin an update's other products before the gradient is there.
    """
    mx.eval(grads)
    squares = mx.stack([mx.square(g.astype(mx.float32)).sum() for g in grads.values()]).sum()
    parameters = named_arrays(model.trainable_parameters())
    moments = named_arrays(optimizer.state)
    updated = [moments[m] for m in moments if m.rpartition(".")[0] in grads]
    for name in grads:
        mx.eval(parameters[name])
    mx.eval(squares, updated)
    return float(squares)
