"""Parts of a model of mlx-lm's kind: its trunk, its layers, and copies with a part exchanged.

A model is a trunk (embedding, layers, last norm) and a head (output layer, scaling, capping) behind
it. Copies are shallow: what is not exchanged is shared with the model, which is never changed.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.adaptable import is_linear, wrapped_module
from mlx_dpo.models.parameters import named_arrays

# What leads to a layer, and its number.
_LAYER = re.compile(r"(.*?)\.(\d+)\.")


class UnknownStructureError(Exception):
    """Trunk and head can't be separated; the model can only be called whole."""


def trunk_path(model: nn.Module) -> list[str]:
    """Names that lead from a model to its trunk: the module that holds the token embedding.

    Raises:
        UnknownStructureError: If no single module holds it, or it is not apart from the head.
    """
    path: list[str] = []
    module = model
    while not any(is_embedding(child) for child in module.children().values()):
        inner = [
            name
            for name, child in module.children().items()
            if isinstance(child, nn.Module) and not is_linear(wrapped_module(child))
        ]
        if len(inner) != 1:
            raise UnknownStructureError("no single module in it holds the token embedding")
        path.append(inner[0])
        module = module[inner[0]]
    if not path:
        raise UnknownStructureError("its embedding is not apart from its output layer")
    return path


def is_embedding(module: Any) -> bool:
    """Whether a module is a table of vectors: dense, packed, or one of these with an adapter."""
    return isinstance(wrapped_module(module), nn.Embedding | nn.QuantizedEmbedding)


def at(model: nn.Module, path: Sequence[str]) -> nn.Module:
    """The module that names lead to."""
    for name in path:
        # `with_trunk` may have put a plain attribute before the module's own entry.
        model = getattr(model, name)
    return model


def with_trunk(model: nn.Module, path: Sequence[str], trunk: Any) -> Any:
    """A copy of the model with another trunk."""
    if not path:
        return trunk
    outer = copy.copy(model)
    # A plain attribute, found before the module's own entry of this name.
    object.__setattr__(outer, path[0], with_trunk(model[path[0]], path[1:], trunk))
    return outer


def replaced(module: Any, parameters: Any) -> Any:
    """A copy of a module that computes with other parameters; those not named are shared.

    A module in place of parameters is taken as it is.
    """
    if isinstance(parameters, mx.array | nn.Module):
        return parameters
    if isinstance(parameters, list):
        return [replaced(m, p) for m, p in zip(module, parameters, strict=True)]
    changed = copy.copy(module)
    for name, value in parameters.items():
        changed[name] = replaced(module[name], value)
    return changed


def in_training_mode(model: nn.Module) -> None:
    """Put a model in training mode, but for its dropout.

    Some layers of mlx-lm's (those of a gated delta rule: Qwen 3.5, Qwen3-Next) call a kernel on a
    GPU that has no gradient, unless they are in it. Dropout would make the policy another model
    than the reference, and start the loss anywhere but at log 2.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d | nn.Dropout3d):
            module.eval()


def by_layer(model: nn.Module) -> list[list[str]]:
    """Names of the trainable parameters, by layer, in the order their gradients become known.

    What is outside the layers comes first, then the last layer, and the embedding at the end. In
    any other order what a later layer keeps for its gradient would wait for an earlier one's.
    """
    embeddings = {name for name, m in model.named_modules() if is_embedding(m)}
    groups: dict[tuple[int, int, str], list[str]] = {}
    for name in named_arrays(model.trainable_parameters()):
        if name.rpartition(".")[0] in embeddings:
            position = (2, 0, name)
        elif match := _LAYER.match(name):
            position = (1, -int(match[2]), match[1])
        else:
            position = (0, 0, name)
        groups.setdefault(position, []).append(name)
    return [groups[position] for position in sorted(groups)]
