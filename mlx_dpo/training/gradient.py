"""A gradient: arrays by parameter name, evaluated layer by layer, summed, checked, clipped.

Layers come in the order in which they become known, and each leaves the dict when it is used: its
gradient is freed before the next one's exists.
"""

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import NonFiniteError
from mlx_dpo.models.device import on_gpu
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.models.parts import by_layer

Gradient = dict[str, mx.array]


class Runtime:
    """Evaluates what a step asks for. The memory plan puts a recorder in its place.

    Args:
        ahead: Layers that are begun before one is waited for: 0 on a CPU, where memory is freed
            sooner and nothing is gained; 1 on a GPU, which would idle between two layers.
    """

    def __init__(self, ahead: int | None = None) -> None:
        self.ahead = int(on_gpu()) if ahead is None else ahead

    def evaluate(self, *trees: Any) -> None:
        """Compute the arrays of some trees, and wait for them."""
        mx.eval(*trees)

    def begin(self, *trees: Any) -> None:
        """Begin to compute the arrays of some trees, and wait for none."""
        mx.async_eval(*trees)

    def numbers(self, scalars: dict[str, mx.array]) -> dict[str, float]:
        """Values of arrays of one element, read at once."""
        values = mx.stack([scalar.astype(mx.float32).reshape(()) for scalar in scalars.values()])
        return dict(zip(scalars, np.array(values).tolist(), strict=True))

    def values(self, array: mx.array) -> npt.NDArray[np.float32]:
        """Values of a float32 array."""
        return np.array(array)


def evaluated_layers(model: nn.Module, grads: Gradient, runtime: Runtime) -> Iterator[Gradient]:
    """Gradients by name, evaluated layer by layer; each leaves `grads` when its layer comes.

    What a layer kept for its gradient goes with it.
    """
    begun: deque[Gradient] = deque()
    for names in by_layer(model):
        begun.append({name: grads.pop(name) for name in names})
        if runtime.ahead:
            runtime.begin(begun[-1])
        if len(begun) > runtime.ahead:
            runtime.evaluate(begun[0])
            yield begun.popleft()
    for layer in begun:
        runtime.evaluate(layer)
        yield layer


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


def clipped(grads: Gradient, norm: float, limit: float) -> Gradient:
    """The gradient scaled to a norm of `limit`, as PyTorch does it."""
    scale = limit / (norm + 1e-6)
    return {name: g * scale for name, g in grads.items()}


def sum_of_squares(grads: Gradient) -> mx.array:
    """Over every gradient, in float32, unevaluated: the square of the norm."""
    return mx.stack([mx.square(g.astype(mx.float32)).sum() for g in grads.values()]).sum()


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
    error = NonFiniteError(
        f"step {step}: loss {loss}, gradient norm {grad_norm}; {outcome}. Try a lower "
        "--learning-rate, and check the weights the run starts from"
    )
    error.applied = applied
    raise error
