"""The arrays of a model or optimizer, by name: in memory and in files."""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_dpo.errors import DiskError, UsageError
from mlx_dpo.files import NewFile


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """Leaves of a tree of arrays under sorted dotted names: equal trees save equal files."""
    return dict(sorted(cast("list[tuple[str, mx.array]]", tree_flatten(tree))))


def num_bytes(tree: Any) -> int:
    """Bytes of the leaves of a tree of arrays."""
    return sum(array.nbytes for array in named_arrays(tree).values())


def fingerprint(model: nn.Module) -> str:
    """sha256 of every parameter's name, shape, dtype and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in named_arrays(model.parameters()).items():
        digest.update(f"{name} {value.shape} {value.dtype}\n".encode())
        # As bytes, because bfloat16 has no NumPy type.
        digest.update(np.array(value.reshape(-1).view(mx.uint8)).data)
    return digest.hexdigest()


def save_arrays(file: Path, tree: Any, metadata: dict[str, str] | None = None) -> NewFile:
    """Write the arrays of a tree as safetensors.

    Returns:
        The file, closed, with its size and digest.

    Raises:
        DiskError: If it can't be written.
    """
    try:
        with NewFile(file) as written:
            mx.save_safetensors(cast("BinaryIO", written), named_arrays(tree), metadata)
    except OSError as error:
        raise DiskError(f"{file}: not written: {error.strerror or error}") from None
    return written


def load_arrays(file: Path) -> dict[str, mx.array]:
    """Read a safetensors file whole.

    Raises:
        UsageError: If it is missing or malformed.
    """
    check_safetensors(file)
    arrays = cast("dict[str, mx.array]", mx.load(str(file)))
    mx.eval(arrays)  # MLX reads files lazily: now, before anything can replace them
    return arrays


def check_finite(arrays: dict[str, mx.array], place: Path) -> None:
    """Refuse weights that are no numbers.

    Raises:
        UsageError: If a tensor holds NaN or an infinity; the message names it.
    """
    for name, value in arrays.items():
        if mx.issubdtype(value.dtype, mx.floating) and not mx.isfinite(value).all().item():
            raise UsageError(
                f"{place}: {name} holds NaN or infinite values; the checkpoint is damaged or its "
                "training failed"
            )


def check_safetensors(file: Path) -> None:
    """Let the strict parser see a file before MLX, which accepts malformed ones.

    Raises:
        UsageError: If it is missing or malformed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            tensors.keys()
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file}: not a valid safetensors file: {error}") from None
