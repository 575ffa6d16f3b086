"""What both layouts share: tensors of a file as parts, and parts made alike."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError
from mlx_dpo.models.adaptable import wrapped_module
from mlx_dpo.models.adapters import Adapter, Part, adapted_matrix, adapted_modules
from mlx_dpo.models.parameters import check_finite, load_arrays
from mlx_dpo.paths import inside

CONFIG = "adapter_config.json"

_LARGEST = 10**9  # beyond any scale or size
_SHOWN = 60  # characters of a value
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)

Value = TypeVar("Value")


def read_tensors(folder: Path, name: str) -> dict[str, mx.array]:
    """The tensors of a file of a folder, in their own dtypes.

    Raises:
        UsageError: If it is missing, damaged, empty, or one is not of finite numbers.
    """
    file = inside(folder, name)
    arrays = load_arrays(file)
    if not arrays:
        raise UsageError(f"{file}: holds no tensor")
    for tensor, value in arrays.items():
        if value.dtype not in _FLOATS:
            kind = str(value.dtype).removeprefix("mlx.core.")
            raise UsageError(f"{file}: {tensor} is {kind}; expected float32, float16 or bfloat16")
    check_finite(arrays, file)
    return arrays


def part_of(
    path: str, tensors: Mapping[str, mx.array], scale: float, rank: int, file: Path
) -> Part:
    """The adapter of one module.

    Args:
        path: Of the module, for messages.
        tensors: ``a``, ``b`` and, of DoRA, ``m``, in the shapes that `Part` has.
        scale: Factor of the product.
        rank: What the config says.
        file: Where they are from, for messages.

    Raises:
        UsageError: If one is missing, or their shapes do not fit one another or the rank.
    """
    for leaf in ("a", "b"):
        if leaf not in tensors:
            raise UsageError(f"{file}: {path} has no matrix {leaf.upper()}; the file is damaged")
    a, b = tensors["a"].astype(mx.float32), tensors["b"].astype(mx.float32)
    if a.ndim not in (2, 3) or a.ndim != b.ndim:
        raise UsageError(f"{file}: the matrices of {path} are {a.shape} and {b.shape}")
    part = Part(a, b, scale)
    if not part.rank == int(b.shape[_rank_axes(part)[1]]) == rank:
        raise UsageError(
            f"{file}: the matrices of {path} are {a.shape} and {b.shape}, and {CONFIG} says rank "
            f"{rank}"
        )
    if "m" not in tensors:
        return part
    magnitude = tensors["m"].astype(mx.float32).reshape(-1)
    if a.ndim != 2 or magnitude.shape != (b.shape[1],):
        raise UsageError(f"{file}: {path} has {magnitude.size} magnitudes, and B is {b.shape}")
    return replace(part, magnitude=magnitude)


def widened(part: Part, rank: int) -> Part:
    """The same adapter with zeros up to a rank."""
    missing = rank - part.rank
    if missing == 0:
        return part
    a_axis, b_axis = _rank_axes(part)
    return replace(part, a=_padded(part.a, a_axis, missing), b=_padded(part.b, b_axis, missing))


def scaled_to(part: Part, scale: float) -> Part:
    """The same adapter with another scale: B takes up the difference."""
    if part.scale == scale:
        return part
    return replace(part, b=part.b * (part.scale / scale), scale=scale)


def with_magnitudes(adapter: Adapter, model: nn.Module) -> dict[str, Part]:
    """An adapter all of whose parts are DoRA where one is: no layout holds both.

    A part without magnitudes gets those its matrix has, which change nothing.

    Raises:
        UsageError: If one of the others is not of a linear layer.
    """
    if all(part.magnitude is None for part in adapter.values()):
        return dict(adapter)
    modules = bare_modules(model)
    filled = {}
    for path, part in adapter.items():
        if part.magnitude is None:
            if not isinstance(modules[path], nn.Linear | nn.QuantizedLinear):
                raise UsageError(
                    f"the adapter is DoRA, and that of {path} is not: one folder can't hold both"
                )
            lengths = mx.linalg.norm(adapted_matrix(modules[path], part), axis=1)
            part = replace(part, magnitude=lengths)
        filled[path] = part
    return filled


def bare_modules(model: nn.Module) -> dict[str, Any]:
    """A model's modules by path, as they are without its adapter."""
    inside_adapted = tuple(f"{path}." for path in adapted_modules(model))
    return {
        path: wrapped_module(module)
        for path, module in model.named_modules()
        if not path.startswith(inside_adapted)
    }


def check_rank(path: Path, value: Any) -> None:
    """Refuse a rank that is none.

    Raises:
        UsageError: If it is not a whole number of at least 1, or larger than any matrix.
    """
    if not isinstance(value, int) or not 0 < value < _LARGEST:
        raise UsageError(f"{path}: rank is {shown(value)}; expected a whole number of at least 1")


def check_number(path: Path, name: str, value: Any) -> None:
    """Refuse what is no number, infinite ones among it.

    Raises:
        UsageError: If it is none.
    """
    if not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        raise UsageError(f"{path}: {name} is {shown(value)}; expected a number")


def shown(value: Any) -> str:
    """A value of a file for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def most_common(values: Iterable[Value]) -> Value:
    """What occurs most often; the first of several."""
    return Counter(values).most_common(1)[0][0]


def plain(number: float) -> int | float:
    """A number as JSON should show it: a whole one without a point."""
    return int(number) if number == int(number) else number


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write adapter_config.json."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _rank_axes(part: Part) -> tuple[int, int]:
    """The axes of A and of B that are the rank; experts are stored as PyTorch would."""
    return (-2, -1) if part.a.ndim == 3 else (-1, -2)


def _padded(matrix: mx.array, axis: int, missing: int) -> mx.array:
    widths = [(0, 0)] * matrix.ndim
    widths[axis] = (0, missing)
    return mx.pad(matrix, widths)
