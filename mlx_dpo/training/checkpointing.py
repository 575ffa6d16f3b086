"""Layer checkpointing: layers recompute their activations for the gradient; less memory.

mlx-lm's own checkpointing changes the class of the layers, and with it the reference, and treats a
cache as a constant. Here a shallow copy of one model gets stand-ins for its layers. All that a
gradient flows through is an input or an output of the function that is recomputed: what a prompt's
cache holds, and what other layers hand over.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_dpo.models.parameters import is_float
from mlx_dpo.models.parts import at, replaced, trunk_path, with_trunk
from mlx_dpo.training.attention import heads_together, is_together
from mlx_dpo.training.prompts import LayerCache


def checkpointed(model: nn.Module) -> Any:
    """A copy of a model, with the same parameters, whose layers keep only their inputs.

    Args:
        model: A model of mlx-lm's kind: a trunk that holds the token embedding and a list of
            layers. It is not changed.

    Raises:
        UnknownStructureError: If trunk or layers can't be found.
    """
    path = trunk_path(model)
    trunk = copy.copy(at(model, path))
    names = [name for name, child in trunk.children().items() if _is_layers(child, model)]
    for name in names:
        trunk[name] = [_Layer(layer) for layer in trunk[name]]
    return with_trunk(model, path, trunk)


def _is_layers(child: Any, model: nn.Module) -> bool:
    layers = list(model.layers)
    return (
        isinstance(child, list)
        and len(child) == len(layers)
        and all(a is b for a, b in zip(child, layers, strict=True))
    )


class _Layer:
    """Stands for a layer: calls it under `mx.checkpoint`."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        called, together = (list(args), kwargs), is_together()
        caches: list[Any] = []
        floats: list[mx.array] = []
        _exchange(called, floats.append, caches.append)

        # Other arguments (masks, offsets) are closed over: mx.checkpoint would differentiate them,
        # and they have no gradient.
        def run(parameters: Any, floats: list[mx.array], held: list[Any]) -> Any:
            left = iter(floats)
            inner = [c.with_arrays(*arrays) for c, arrays in zip(caches, held, strict=True)]
            cache = iter(inner)
            args, kwargs = _exchange(called, lambda _: next(left), lambda _: next(cache))
            with heads_together() if together else nullcontext():  # also where it is computed again
                output = replaced(self._layer, parameters)(*args, **kwargs)
            return output, [_apart(cache.recorded(), output) for cache in inner]

        # Of the parameters only those that train: packed ones have no gradient.
        trained = self._layer.trainable_parameters()
        output, recorded = mx.checkpoint(run)(trained, floats, [c.arrays() for c in caches])
        for cache, arrays in zip(caches, recorded, strict=True):
            cache.record(*arrays)
        return output


def _apart(recorded: Sequence[Any], output: Any) -> list[Any]:
    """What a cache recorded, none of it an output of the layer too.

    Of two outputs that are one array, `mx.checkpoint` takes the gradient of one alone.
    """
    outputs: list[Any] = []
    tree_map(outputs.append, output)
    return [a[None].squeeze(0) if any(a is leaf for leaf in outputs) else a for a in recorded]


def _exchange(
    called: Any, of_float: Callable[[mx.array], Any], of_cache: Callable[[Any], Any]
) -> Any:
    """What a layer is called with, its arrays with a gradient and its caches exchanged, in turn."""

    def exchanged(leaf: Any) -> Any:
        if isinstance(leaf, mx.array):
            return of_float(leaf) if is_float(leaf) else leaf
        return of_cache(leaf) if isinstance(leaf, LayerCache) else leaf

    return tree_map(exchanged, called)
