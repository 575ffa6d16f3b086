"""A model of the right shapes and no weights: from config.json and the headers of its files."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.models.dialects import TIED, check_sizes, for_mlx, is_head, model_classes
from mlx_dpo.models.hub import checked_config
from mlx_dpo.models.parameters import named_arrays, tensor_shapes


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
    config = checked_config(folder)
    shapes = {name: shape for name, (shape, _) in tensor_shapes(folder).items()}
    try:
        check_sizes(config, list(shapes.values()))
        config.setdefault(TIED, not any(map(is_head, shapes)))
        merged = for_mlx(config)
        model_class, arguments = model_classes(merged)
        model: nn.Module = model_class(arguments.from_dict(merged))
        weights = {name: mx.zeros(shape) for name, shape in shapes.items()}
        if hasattr(model, "sanitize"):
            weights = model.sanitize(weights)
        model.load_weights(list(weights.items()))
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    except Exception as error:  # whatever mlx-lm meets in a folder, the folder is at fault
        raise UsageError(f"{folder}: cannot be loaded: {one_line(error)}") from None
    return emptied(model, dtype)


def emptied(model: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """The model with zeros for parameters, in another type where they are of floating point."""

    def empty(value: mx.array) -> mx.array:
        is_float = mx.issubdtype(value.dtype, mx.floating)
        return mx.zeros(value.shape, dtype if is_float else value.dtype)

    model.update(tree_map(empty, model.parameters()))
    model.eval()
    return model


def num_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(a.nbytes for a in named_arrays(model.parameters()).values())
