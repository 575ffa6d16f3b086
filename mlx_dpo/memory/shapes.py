"""A model of the right shapes and no weights: from config.json and the headers of its files."""

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_dpo.errors import UsageError
from mlx_dpo.models.dialects import TIED, check_sizes, is_head, mlx_config, model_classes
from mlx_dpo.models.hub import normalised, trainable_config
from mlx_dpo.models.parameters import named_arrays

_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format
_MAX_ELEMENTS = 2**48

Shapes = dict[str, tuple[int, ...]]


def shell(folder: Path, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """The module a model folder describes, its parameters zeros that are never evaluated.

    Everything that loading refuses for its shape is refused here too. What lies behind the headers
    is not looked at. Where the config leaves open whether an output layer is the embedding once
    more, one that is stored counts as a layer of its own: only its bits would tell.

    Args:
        folder: Holds ``config.json`` and ``model*.safetensors``.
        dtype: Of the parameters.

    Raises:
        UsageError: If a file is missing or malformed, or the model can't be trained.
    """
    config = trainable_config(folder)
    shapes = read_shapes(folder)
    try:
        check_sizes(config, [list(shape) for shape in shapes.values()])
        config.setdefault(TIED, not any(map(is_head, shapes)))
        merged = config | mlx_config(config, normalised(config))
        model_class, arguments = model_classes(merged)
        model: nn.Module = model_class(arguments.from_dict(merged))
        weights = {name: mx.zeros(shape) for name, shape in shapes.items()}
        if hasattr(model, "sanitize"):
            weights = model.sanitize(weights)
        model.load_weights(list(weights.items()))
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    except Exception as error:  # whatever mlx-lm meets in a folder, the folder is at fault
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UsageError(f"{folder}: cannot be loaded: {reason}") from None
    return emptied(model, dtype)


def emptied(model: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """The model with zeros for parameters, in another type where they are of floating point."""

    def empty(value: mx.array) -> mx.array:
        is_float = mx.issubdtype(value.dtype, mx.floating)
        return mx.zeros(value.shape, dtype if is_float else value.dtype)

    model.update(tree_map(empty, model.parameters()))
    model.eval()
    return model


def read_shapes(folder: Path) -> Shapes:
    """Shape of every tensor in a folder's weight files, by name.

    Raises:
        UsageError: If there is no such file, or a header is not as it must be.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UsageError(f"{folder}: no model*.safetensors in it")
    shapes: Shapes = {}
    for file in files:
        for name, entry in _header(file).items():
            if name != "__metadata__":
                shapes[name] = _shape_of(entry, file)
    return shapes


def num_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(a.nbytes for a in named_arrays(model.parameters()).values())


def _header(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= _MAX_HEADER:
                raise UsageError(f"{file}: not a valid safetensors file: its header is no header")
            header = json.loads(opened.read(length))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: not a valid safetensors file: {error}") from None
    if not isinstance(header, dict):
        raise UsageError(f"{file}: not a valid safetensors file: its header is no object")
    return header


def _shape_of(entry: Any, file: Path) -> tuple[int, ...]:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise UsageError(f"{file}: not a valid safetensors file: a tensor has no shape")
    if math.prod(shape) > _MAX_ELEMENTS:
        raise UsageError(f"{file}: a tensor of shape {shape} is larger than any memory")
    return tuple(shape)
