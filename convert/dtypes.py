"""Floating-point formats of weights: casting, naming and counting."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.convert.hf.names import BUFFERS
from mlx_dpo.errors import UsageError

NAMED = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def cast(arrays: Mapping[str, mx.array], dtype: mx.Dtype | None) -> dict[str, mx.array]:
    """Parameters in another float dtype; integers, buffers and dtype None stay as they are.

    Raises:
        UsageError: If a value is too large for the dtype.
    """
    if dtype is None:
        return dict(arrays)
    result = {}
    for name, value in arrays.items():
        result[name] = value.astype(dtype) if _is_parameter(name, value) else value
        too_large = dtype == mx.float16 and not mx.isfinite(result[name]).all().item()
        if too_large and _is_parameter(name, value):
            raise UsageError(f"{name}: holds values too large for float16; bfloat16 has room")
    return result


def with_dtype(config: dict[str, Any], arrays: Mapping[str, mx.array]) -> dict[str, Any]:
    """A config that names the dtype its weights have, where it names one and they have one."""
    found = dtype_names(arrays)
    if len(found) != 1:
        return config
    return config | {key: found[0] for key in ("torch_dtype", "dtype") if key in config}


def dtype_names(arrays: Mapping[str, mx.array]) -> list[str]:
    """Names of the float dtypes that parameters have."""
    found = {value.dtype for name, value in arrays.items() if _is_parameter(name, value)}
    return sorted(str(dtype).removeprefix("mlx.core.") for dtype in found)


def num_parameters(arrays: Mapping[str, mx.array]) -> int:
    """Numbers in the parameters."""
    return sum(value.size for name, value in arrays.items() if _is_parameter(name, value))


def largest_change(before: mx.array, after: mx.array) -> float:
    """Largest absolute difference of two tensors of one shape; 0 where they are empty."""
    if not before.size:
        return 0.0
    return float(np.array(mx.abs(after.astype(mx.float32) - before.astype(mx.float32)).max()))


def _is_parameter(name: str, value: mx.array) -> bool:
    return mx.issubdtype(value.dtype, mx.floating) and not BUFFERS.search(name)
