"""The arrays of a model or optimizer, by name."""

import hashlib
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """Leaves of a tree of arrays under sorted dotted names: equal trees save equal files."""
    return dict(sorted(cast("list[tuple[str, mx.array]]", tree_flatten(tree))))


def fingerprint(model: nn.Module) -> str:
    """sha256 of every parameter's name, shape, dtype and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in named_arrays(model.parameters()).items():
        digest.update(f"{name} {value.shape} {value.dtype}\n".encode())
        # As bytes, because bfloat16 has no NumPy type.
        digest.update(np.array(value.reshape(-1).view(mx.uint8)).data)
    return digest.hexdigest()
