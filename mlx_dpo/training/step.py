"""The update of a step: the gradient's norm, and a layer updated as its gradient is there.

A gradient is a dict of arrays by parameter name. Whoever evaluates one layer by layer empties it,
so that a layer's gradient is freed before the next one's is there.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_dpo.errors import NonFiniteError
from mlx_dpo.models.parameters import named_arrays

Gradient = dict[str, mx.array]

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


def evaluated_layers(model: nn.Module, grads: Gradient) -> Iterator[Gradient]:
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


def flat_gradient(tree: Any) -> Gradient:
    """A tree of gradients by name, in the tree's order: noise of an update is drawn in turn."""
    return dict(tree_flatten(tree))


def added(total: Gradient, grads: Gradient, weight: float) -> Gradient:
    """A batch's gradient, weighted by its share of the pairs, and the total so far.

    In float32 where it is a share: sums of many small parts are lost in bfloat16.
    """
    if weight == 1:
        return grads
    part = {name: g.astype(mx.float32) * weight for name, g in grads.items()}
    return {name: total[name] + g for name, g in part.items()} if total else part


def in_dtype_of(model: nn.Module, grads: Gradient) -> Gradient:
    """The gradient with the dtype of each parameter."""
    parameters = named_arrays(model.trainable_parameters())
    return {name: g.astype(parameters[name].dtype) for name, g in grads.items()}


def global_norm(grads: Gradient) -> float:
    """L2 norm over all parameters."""
    return math.sqrt(sum_of_squares(grads))


def clipped(grads: Gradient, norm: float, limit: float) -> Gradient:
    """The gradient scaled to a norm of `limit`, as PyTorch does it."""
    scale = limit / (norm + 1e-6)
    scaled: Gradient = tree_map(lambda g: g * scale, grads)
    return scaled


def evaluate_and_measure(model: nn.Module, grads: Gradient) -> float:
    """The norm of a gradient that is evaluated layer by layer; `grads` is emptied."""
    layers = evaluated_layers(model, grads)
    return math.sqrt(math.fsum([sum_of_squares(layer) for layer in layers]))


def apply_gradient(model: nn.Module, optimizer: optim.Optimizer, grads: Gradient) -> None:
    """Update a model, layer by layer; `grads` is emptied."""
    for _ in _updated_layers(model, optimizer, grads):
        pass


def apply_and_measure(model: nn.Module, optimizer: optim.Optimizer, grads: Gradient) -> float:
    """Update a model, each layer as its gradient is there, and return the gradient's norm.

    The norm is known when all is done: where it is not finite the weights are lost. `grads` is
    emptied.
    """
    layers = _updated_layers(model, optimizer, grads)
    return math.sqrt(math.fsum([sum_of_squares(layer) for layer in layers]))


def _updated_layers(
    model: nn.Module, optimizer: optim.Optimizer, grads: Gradient
) -> Iterator[Gradient]:
    """Gradients of each layer, evaluated; the layer is updated with them when the next is due."""
    optimizer.update(model, tree_unflatten(list(grads.items())))
    for layer in evaluated_layers(model, grads):
        yield layer
        evaluate_update(model, optimizer, layer)
    mx.eval(model.parameters(), optimizer.state)


def evaluate_update(model: nn.Module, optimizer: optim.Optimizer, grads: Gradient) -> None:
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


# --- A loss or gradient that is no number ends the step, with what is left of
# the weights said.


def check_finite(step: int, loss: float, grad_norm: float = 0.0, *, applied: bool = False) -> None:
    """Refuse a step whose loss or gradient norm is not finite.

    Args:
        step: Counted from 0.
        loss: Of the step.
        grad_norm: Of the step, where it is known.
        applied: Whether the update has been made already.

    Raises:
        NonFiniteError: If one of the two is not.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    outcome = "nothing was applied"
    if applied:
        outcome = (
            "the weights in memory are spoilt; the last checkpoint is not: --resume goes on from "
            "it, and with --grad-clip a step is checked before it is applied"
        )
    raise NonFiniteError(
        f"step {step}: loss {loss}, gradient norm {grad_norm}; {outcome}. Try a lower "
        "--learning-rate, and check the weights the run starts from"
    )


# --- How long the phases of a step take, for whoever measures.


PHASES = ("data", "reference", "forward_backward", "update")


class Phases:
    """Times the phases of a step: called as ``with phases("update"):``.

    Attributes:
        seconds: Of the last step, by phase: ``data`` (fetching the pairs), ``reference``,
            ``forward_backward``, ``update`` (gradient norm included).
        around: Entered around each phase, by its name.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.around: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()

    def reset(self) -> None:
        """Begin a step."""
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is inside; entered again, seconds add up."""
        start = time.perf_counter()
        with self.around(name):
            yield
        self.seconds[name] += time.perf_counter() - start
