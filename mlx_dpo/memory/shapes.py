"""A model of the right shapes and no weights: from config.json and the headers of its files.

Where there are no weight files, the shapes are those that config.json alone describes.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.models.config import checked_config, stored_shapes
from mlx_dpo.models.dialects import (
    TIED,
    check_sizes,
    check_sizes_alone,
    for_mlx,
    model_classes,
    names_head,
)
from mlx_dpo.models.parameters import has_weights, is_float, named_arrays, tensor_shapes
from mlx_dpo.models.parts import in_training_mode

Shapes = dict[str, tuple[tuple[int, ...], str]]  # shape and dtype code by name of a tensor
_INTEGERS = {"U32": mx.uint32, "U8": mx.uint8}  # what packed weights and their scales are kept as


def shell(folder: Path, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """The module a model folder describes, its parameters zeros that are never evaluated.

    Everything that loading refuses for its shape is refused here too. What lies behind the headers
    is not looked at. Where the config leaves open whether an output layer is the embedding once
    more, one that is stored counts as a layer of its own: only its bits would tell.

    Quantised layers are MLX's own, whose products read packed weights, on a CPU too.

    Args:
        folder: Holds ``config.json``, and ``model*.safetensors`` unless it is a model without its
            weights.
        dtype: Of the parameters.

    Raises:
        UsageError: If a file is malformed, or the model can't be trained.
    """
    config = checked_config(folder)
    headers = tensor_shapes(folder) if has_weights(folder) else None
    try:
        model = _from_config(config) if headers is None else _from_headers(config, headers)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    except Exception as error:  # whatever mlx-lm meets in a folder, the folder is at fault
        raise UsageError(f"{folder}: cannot be loaded: {one_line(error)}") from None
    return emptied(model, dtype)


def packed(model: nn.Module, *, bits: int = 4, group_size: int = 64) -> nn.Module:
    """A shell with its layers quantised, in place, as far as a group divides their rows."""
    dtype = next(iter(named_arrays(model.parameters()).values())).dtype
    _pack(model, {"bits": bits, "group_size": group_size})
    return emptied(model, dtype)


def emptied(model: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """The model with zeros for parameters, in another type where they are of floating point."""

    def empty(value: mx.array) -> mx.array:
        return mx.zeros(value.shape, dtype if is_float(value) else value.dtype)

    model.update(tree_map(empty, model.parameters()))
    in_training_mode(model)
    return model


def _from_headers(config: dict[str, Any], headers: Shapes) -> nn.Module:
    check_sizes(config, stored_shapes(config, headers))
    config.setdefault(TIED, not any(map(names_head, headers)))
    config = for_mlx(config)
    model = _described(config)
    weights = {
        name: mx.zeros(shape, _INTEGERS.get(code, mx.float32))
        for name, (shape, code) in headers.items()
    }
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    if config.get("quantization"):
        _pack(model, config["quantization"], weights)
    model.load_weights(list(weights.items()))
    return model


def _from_config(config: dict[str, Any]) -> nn.Module:
    check_sizes_alone(config)
    config = for_mlx(config)
    model = _described(config)
    if config.get("quantization"):
        _pack(model, config["quantization"])
    return model


def _described(config: dict[str, Any]) -> nn.Module:
    model_class, arguments = model_classes(config)
    model: nn.Module = model_class(arguments.from_dict(config))
    return model


def _pack(
    model: nn.Module, packing: dict[str, Any], weights: dict[str, mx.array] | None = None
) -> None:
    """Quantise the layers of a model that a folder has quantised, as mlx-lm does to load it.

    Args:
        model: Its arrays are not evaluated.
        packing: ``quantization`` of a config.json; it may name layers with packings of their own.
        weights: Tensors of the folder: layers that have scales are packed. Without, all that can
            be.
    """
    from mlx_lm.utils import infer_quant_config

    def how(path: str, module: nn.Module) -> Any:
        if path in packing:
            return packing[path]
        if not hasattr(module, "to_quantized"):
            return False
        if weights is None:
            return bool(module.weight.shape[-1] % packing["group_size"] == 0)
        return f"{path}.scales" in weights and infer_quant_config(path, module, weights)

    nn.quantize(
        model,
        group_size=packing["group_size"],
        bits=packing["bits"],
        mode=packing.get("mode", "affine"),
        class_predicate=how,
    )
