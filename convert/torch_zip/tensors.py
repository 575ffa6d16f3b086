"""Tensors of PyTorch files as NumPy arrays, and from there to MLX, without losing a bit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import mlx.core as mx

# PyTorch's names of storage types, and the layout of their numbers in a file.
DTYPES: dict[str, np.dtype[Any]] = {
    "Float": np.dtype("<f4"),
    "Half": np.dtype("<f2"),
    "BFloat16": np.dtype("<u2"),  # its bits: NumPy has no such type
    "Double": np.dtype("<f8"),
    "Long": np.dtype("<i8"),
    "Int": np.dtype("<i4"),
    "Short": np.dtype("<i2"),
    "Char": np.dtype("i1"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
_MAX_DIMENSIONS = 16
_MAX_SIDE = 2**31 - 1  # of an MLX array; one without elements may claim any


@dataclass(frozen=True, eq=False)
class BFloat16:
    """A bfloat16 tensor, for which NumPy has no type.

    Attributes:
        bits: uint16, the sixteen bits of each number.
    """

    bits: npt.NDArray[np.uint16]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return self.bits.shape


Tensor = npt.NDArray[Any] | BFloat16
TENSOR_TYPES = (np.ndarray, BFloat16)


def as_mlx(tensor: Tensor) -> "mx.array":
    """The same numbers, bit for bit, as an MLX array."""
    import mlx.core as mx

    if isinstance(tensor, BFloat16):
        return mx.array(np.ascontiguousarray(tensor.bits)).view(mx.bfloat16)
    if tensor.dtype == np.float64:  # MLX makes it float32 by default
        return mx.array(tensor, dtype=mx.float64)
    return mx.array(tensor)


def num_bytes(tensor: Tensor) -> int:
    """Memory a copy of a tensor takes."""
    return int((tensor.bits if isinstance(tensor, BFloat16) else tensor).nbytes)


def from_mlx(array: "mx.array") -> Tensor:
    """The same numbers, bit for bit, to be written to a PyTorch file."""
    import mlx.core as mx

    if array.dtype == mx.bfloat16:
        return BFloat16(np.array(array.view(mx.uint16)))
    return np.array(array)


def view(
    kind: str,
    storage: npt.NDArray[Any],
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
) -> Tensor:
    """A tensor as a view of its storage.

    Args:
        kind: A key of `DTYPES`.
        storage: One-dimensional.
        offset: Its first element.
        shape: Not negative.
        strides: In elements, not negative; as many as dimensions.

    Raises:
        ValueError: If it would reach past the storage, or claim more elements than that has.
    """
    size = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # Repeating a number by a stride of 0 would let a small file claim any amount of memory.
    too_large = len(shape) > _MAX_DIMENSIONS or max(size, offset) > storage.size
    too_large = too_large or max(shape, default=0) > _MAX_SIDE
    if too_large or (size and last >= storage.size):
        raise ValueError(
            f"a tensor of shape {list(shape)[:_MAX_DIMENSIONS]}, strides "
            f"{list(strides)[:_MAX_DIMENSIONS]} and offset {offset} does not fit its storage of "
            f"{storage.size} elements"
        )
    if not size:
        values = np.empty(shape, storage.dtype)
    else:
        steps = [step * storage.itemsize for step in strides]
        values = np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)
    return BFloat16(values) if kind == "BFloat16" else values
