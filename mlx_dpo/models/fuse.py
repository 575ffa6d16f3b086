"""A model as plain weights: its adapter summed into its matrices, which are rounded once.

Packed weights are unpacked, and packed anew only where that is asked for. All arrays are lazy: what
each needs is computed when its file is written (`models.shards`), so that memory holds the model as
it was loaded and one file.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError
from mlx_dpo.models.adaptable import wrapped_module
from mlx_dpo.models.adapters import adapted_matrix, adapted_modules, base_parameters, parts_of
from mlx_dpo.models.packed import dense, is_packed, num_inputs
from mlx_dpo.models.parameters import is_float

_GROUPS = (64, 32)  # columns that share a scale: the first that divides some layer's columns
_OF_PACKED = ("scales", "biases", "global_scale")


@dataclass(frozen=True)
class Packing:
    """How the matrix of a layer is quantised; as `mlx.core.quantize` takes it."""

    group_size: int
    bits: int
    mode: str = "affine"


def fused(model: nn.Module, dtype: mx.Dtype) -> dict[str, mx.array]:
    """The parameters of a model without adapter and packing that computes what this one does.

    Args:
        model: With an adapter or without, packed or not.
        dtype: Of the result. Sums are float32 and rounded once. What the architecture wants kept
            as it is stored (`cast_predicate` of mlx-lm's models) is.

    Returns:
        Lazy arrays by the names that the model's parameters have without the adapter.

    Raises:
        UsageError: If a packed layer can't be unpacked.
    """
    return {
        name: _rounded(model, name, array, dtype) for name, array in _dense_arrays(model).items()
    }


def packed_anew(
    model: nn.Module, dtype: mx.Dtype, packings: dict[str, Packing]
) -> dict[str, mx.array]:
    """As `fused`, with the matrices of some layers quantised from their float32 sums.

    Args:
        model: As in `fused`.
        dtype: Of what is not packed, and of scales.
        packings: By path of the layer; see `choose_packings`.
    """
    arrays: dict[str, mx.array] = {}
    for name, array in _dense_arrays(model).items():
        path, _, last = name.rpartition(".")
        if last != "weight" or path not in packings:
            arrays[name] = _rounded(model, name, array, dtype)
            continue
        parts = mx.quantize(array.astype(mx.float32), **asdict(packings[path]))
        for part, value in zip(("weight", "scales", "biases"), parts, strict=False):
            arrays[f"{path}.{part}"] = value.astype(dtype) if is_float(value) else value
    return arrays


def choose_packings(model: nn.Module, bits: int, mode: str = "affine") -> dict[str, Packing]:
    """Which layers to quantise, and how: as the model's own are if they have these bits.

    Else as ``mlx_lm.convert`` does: groups of 64, every layer whose columns they divide, and the
    exceptions that the architecture names; groups of 32 where 64 divides the columns of none.

    Raises:
        UsageError: If no layer can be quantised.
    """
    layers = _layers(model)
    own = {
        path: Packing(layer.group_size, layer.bits, layer.mode)
        for path, layer in layers.items()
        if is_packed(layer)
    }
    common = Counter(packing.bits for packing in own.values()).most_common(1)
    # Their own of these bits, unless another mode is asked for than theirs.
    if common and common[0][0] == bits and mode in ("affine", *(p.mode for p in own.values())):
        return own
    candidates = _candidates(model)
    for group in _GROUPS if mode == "affine" else _GROUPS[-1:]:
        fitting = {p: m for p, m in candidates.items() if num_inputs(m) % group == 0}
        if fitting:
            return _as_architecture_wants(model, fitting, Packing(group, bits, mode))
    raise UsageError(
        f"--quantize {bits}: no layer of the model has a number of columns that {_GROUPS[-1]} "
        "divides, so that none can be packed"
    )


def left_dense(model: nn.Module, packings: dict[str, Packing]) -> list[str]:
    """Paths of layers with a matrix that others are packed beside, and these are not."""
    return [path for path in _candidates(model) if path not in packings]


def packing_entry(packings: dict[str, Packing]) -> dict[str, Any]:
    """What config.json says of packed layers, as mlx-lm writes and reads it.

    Returns:
        The commonest packing, and by path those of layers that have another.
    """
    common = Counter(packings.values()).most_common(1)[0][0]
    others = {path: asdict(packing) for path, packing in packings.items() if packing != common}
    return asdict(common) | others


def _layers(model: nn.Module) -> dict[str, Any]:
    """Modules by path, adapted ones without their adapter and under their own path."""
    adapted = adapted_modules(model)
    return {
        path: wrapped_module(module)
        for path, module in model.named_modules()
        if path.rpartition(".")[0] not in adapted
    }


def _candidates(model: nn.Module) -> dict[str, Any]:
    layers = _layers(model)
    return {p: m for p, m in layers.items() if is_packed(m) or hasattr(m, "to_quantized")}


def _dense_arrays(model: nn.Module) -> dict[str, mx.array]:
    """Every parameter by name; matrices that were adapted or packed dense, in float32."""
    layers, parts = _layers(model), parts_of(model)
    arrays = {}
    for name, value in base_parameters(model).items():
        path, _, last = name.rpartition(".")
        layer: Any = layers.get(path)
        if is_packed(layer) and last in _OF_PACKED:
            if last == "global_scale":
                raise UsageError(
                    f"{path} is quantised with a scale for each expert: it can't be unpacked here"
                )
        elif last == "weight" and path in parts:
            arrays[name] = adapted_matrix(layer, parts[path])
        elif last == "weight" and is_packed(layer):
            arrays[name] = dense(layer)
        else:
            arrays[name] = value
    return arrays


def _rounded(model: nn.Module, name: str, array: mx.array, dtype: mx.Dtype) -> mx.array:
    may_cast = getattr(model, "cast_predicate", lambda name: True)
    return array.astype(dtype) if is_float(array) and may_cast(name) else array


def _as_architecture_wants(
    model: nn.Module, layers: dict[str, Any], packing: Packing
) -> dict[str, Packing]:
    wanted = getattr(model, "quant_predicate", None)
    chosen = {}
    for path, layer in layers.items():
        answer = True if wanted is None else wanted(path, layer)
        if isinstance(answer, dict):
            own = Packing(**asdict(packing) | {"mode": "affine"} | answer)
            if num_inputs(layer) % own.group_size == 0:
                chosen[path] = own
        elif answer:
            chosen[path] = packing
    return chosen
