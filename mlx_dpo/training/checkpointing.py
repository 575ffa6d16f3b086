"""Layer checkpointing: layers recompute their activations for the gradient; less memory.

mlx-lm's own checkpointing changes the class of the layers, and with it the reference, and treats a
cache as a constant. Here a shallow copy of one model gets stand-ins for its layers, and a prompt's
keys and values are inputs and outputs of the function that is recomputed.
"""

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.parts import at, replaced, trunk_path, with_trunk
from mlx_dpo.training.prompts import AfterPrompt, PromptKeys


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

    def __call__(self, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        caches = [c for c in (*args, *kwargs.values()) if isinstance(c, PromptKeys | AfterPrompt)]
        cache = caches[0] if caches else None

        # Other arguments (masks, offsets) are closed over: mx.checkpoint would differentiate them,
        # and they have no gradient.
        def run(parameters: Any, x: mx.array, *prompt: mx.array) -> Any:
            layer = replaced(self._layer, parameters)
            if cache is None:
                return (layer(x, *args, **kwargs),)
            inner = cache.with_arrays(*prompt)
            output = layer(
                x,
                *(inner if a is cache else a for a in args),
                **{name: inner if a is cache else a for name, a in kwargs.items()},
            )
            return (output, *inner.recorded())

        prompt = () if cache is None else cache.arrays()
        # Of the parameters only those that train: packed ones have no gradient.
        trained = self._layer.trainable_parameters()
        output, *recorded = mx.checkpoint(run)(trained, x, *prompt)
        if cache is not None:
            cache.record(*recorded)
        return output
