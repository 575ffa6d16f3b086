"""The arrays of a model or optimizer, by name: in memory and in safetensors files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_dpo.errors import UsageError, disk_error, one_line
from mlx_dpo.files import NewFile
from mlx_dpo.paths import check_ordinary

_SAME_SIZE = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}


class Header(NamedTuple):
    """The header of a safetensors file.

    Attributes:
        tensors: Shape and dtype code (``F32``, ``BF16``, ...) by name.
        metadata: Free texts.
    """

    tensors: dict[str, tuple[tuple[int, ...], str]]
    metadata: dict[str, str]


def named_arrays(tree: Any) -> dict[str, mx.array]:
    """Leaves of a tree of arrays under sorted dotted names: equal trees save equal files."""
    return dict(sorted(cast("list[tuple[str, mx.array]]", tree_flatten(tree))))


def is_float(array: mx.array) -> bool:
    """Whether an array is of floating point: packed weights and their exponents are not."""
    return bool(mx.issubdtype(array.dtype, mx.floating))


def is_float32(model: nn.Module) -> bool:
    """Whether all parameters of floating point are float32."""
    arrays = named_arrays(model.parameters()).values()
    return all(a.dtype == mx.float32 for a in arrays if is_float(a))


def num_bytes(tree: Any) -> int:
    """Bytes of the leaves of a tree of arrays."""
    return sum(array.nbytes for array in named_arrays(tree).values())


def fingerprint(parameters: Any) -> str:
    """sha256 of every array's name, shape, dtype and bytes, in the order of the names.

    Args:
        parameters: A tree of arrays, or a module for all of its parameters.
    """
    tree = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
    return _digest(named_arrays(tree).items())


def _digest(arrays: Iterable[tuple[str, mx.array]]) -> str:
    digest = hashlib.sha256()
    for name, value in arrays:
        digest.update(f"{name} {value.shape} {value.dtype}\n".encode())
        # As bytes, because bfloat16 has no NumPy type.
        digest.update(np.array(value.reshape(-1).view(mx.uint8)).data)
    return digest.hexdigest()


def stored_digest(folder: Path) -> str:
    """sha256 of a model folder's tensors as they are stored, however they are spread over files.

    Raises:
        UsageError: If there are none, or a file is malformed.
    """
    tensor_shapes(folder)  # with the strict parser
    stored: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        stored |= cast("dict[str, mx.array]", mx.load(str(file)))  # lazy
    # Read when it is hashed, and let go of: one tensor is in memory at a time.
    return _digest((name, stored.pop(name)) for name in sorted(stored))


def as_bits(value: mx.array) -> mx.array:
    """The same bytes as unsigned integers: bfloat16 has no NumPy type, and 0.0 equals -0.0."""
    if value.dtype == mx.bool_:
        return value.astype(mx.uint8)
    return value.view(_SAME_SIZE[value.itemsize])


def same_bits(a: mx.array, b: mx.array) -> bool:
    """Whether two arrays are equal in shape, dtype and every bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(mx.array_equal(as_bits(a), as_bits(b)).item())


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
        raise disk_error(file, error) from None
    return written


def load_arrays(file: Path) -> dict[str, mx.array]:
    """Read a safetensors file whole.

    Raises:
        UsageError: If it is missing or malformed.
    """
    read_header(file)
    arrays = cast("dict[str, mx.array]", mx.load(str(file)))
    mx.eval(arrays)  # MLX reads files lazily: now, before anything can replace them
    return arrays


def read_header(file: Path) -> Header:
    """Read the header of a safetensors file with the strict parser: MLX accepts malformed files.

    Raises:
        UsageError: If the file is missing or malformed.
    """
    from safetensors import SafetensorError, safe_open

    check_ordinary(file)
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            tensors = {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}
            return Header(tensors, dict(opened.metadata() or {}))
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file}: not a valid safetensors file: {one_line(error)}") from None


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds ``model*.safetensors``."""
    return any(folder.glob("model*.safetensors"))


def tensor_shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype code of every tensor in a model folder, from the headers of its files.

    Raises:
        UsageError: If there is no ``model*.safetensors``, or one is malformed.
    """
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UsageError(f"{folder}: no model*.safetensors in it")
    return {name: entry for file in files for name, entry in read_header(file).tensors.items()}


def check_finite(arrays: dict[str, mx.array], source: Path) -> None:
    """Refuse arrays with NaN or infinite values.

    Args:
        arrays: By name.
        source: The file or folder they were read from, for the message.

    Raises:
        UsageError: If there is one; the message names it.
    """
    for name, value in arrays.items():
        if is_float(value) and not mx.isfinite(value).all().item():
            raise UsageError(
                f"{source}: {name} holds NaN or infinite values; the checkpoint is damaged or its "
                "training failed"
            )
