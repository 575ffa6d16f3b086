"""The update of a step: the gradient's norm, and a layer updated as its gradient is there."""

import re
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from mlx_dpo.models.parameters import named_arrays

# What leads to a layer, and its number.
_LAYER = re.compile(r"(.*?)\.(\d+)\.")


def sum_of_squares(grads: Any) -> float:
    """Over every gradient of a tree, in float32: the square of its norm."""
    squares = [mx.square(g.astype(mx.float32)).sum() for g in named_arrays(grads).values()]
    return float(mx.stack(squares).sum())


def by_layer(model: nn.Module) -> list[list[str]]:
    """Names of the trainable parameters, by layer, in the order their gradients become known.

    What is outside the layers comes first, then the last layer, and the embedding at the end. In
    any other order what a later layer keeps for its gradient would wait for an earlier one's.
    """
    embeddings = {name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple[int, int, str], list[str]] = {}
    for name in named_arrays(model.trainable_parameters()):
        if name.rpartition(".")[0] in embeddings:
            place = (2, 0, name)
        elif found := _LAYER.match(name):
            place = (1, -int(found[2]), found[1])
        else:
            place = (0, 0, name)
        groups.setdefault(place, []).append(name)
    return [groups[place] for place in sorted(groups)]


def evaluated_layers(model: nn.Module, grads: dict[str, mx.array]) -> Iterator[dict[str, mx.array]]:
    """Gradients by name, evaluated layer by layer; each leaves `grads` when its layer comes.

    What a layer kept for its gradient goes with it.
    """
    for names in by_layer(model):
        layer = {name: grads.pop(name) for name in names}
        mx.eval(layer)
        yield layer


def evaluate_gradients(model: nn.Module, grads: Any) -> None:
    """Evaluate a tree of gradients layer by layer."""
    for _ in evaluated_layers(model, named_arrays(grads)):
        pass


def evaluate_update(
    model: nn.Module, optimizer: optim.Optimizer, grads: dict[str, mx.array]
) -> None:
    """Evaluate the updates that wait for some gradients, which go as soon as none waits any more.

    One kind of moment after the other and the weights last: evaluated together, the products of all
    would be alive at once. `grads` is emptied.
    """
    kinds: dict[str, list[mx.array]] = {}
    for name, moment in named_arrays(optimizer.state).items():
        parameter, _, kind = name.rpartition(".")
        if parameter in grads:
            kinds.setdefault(kind, []).append(moment)
    names = list(grads)
    grads.clear()
    for moments in kinds.values():
        mx.eval(moments)
    parameters = named_arrays(model.trainable_parameters())
    mx.eval([parameters[name] for name in names])
