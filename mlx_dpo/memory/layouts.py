"""How an array lies in its buffer: strided views over nothing, which take no memory."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.memory.graph import Array, Node

Layout = npt.NDArray[Any]


def dense(array: Array) -> Layout:
    """A layout in row order, which takes no memory of its own."""
    strides, step = [], array.itemsize
    for size in reversed(array.shape):
        strides.append(step)
        step *= size
    whole = np.lib.stride_tricks.as_strided(
        np.zeros(1, f"V{array.itemsize}"), array.shape, strides[::-1], writeable=False
    )
    return whole


def viewed(node: Node, layout: Layout, output: Array) -> Layout | None:
    """The layout of a view; None where the elements have to be moved."""
    arguments = node.arguments
    if node.name == "Transpose":
        return layout.transpose(arguments[0])
    if node.name == "Broadcast":
        return np.broadcast_to(layout, output.shape)
    if node.name == "Slice":
        starts, stops, steps = arguments
        return layout[tuple(map(slice, starts, stops, steps))]
    if node.name == "Contiguous" and not layout.flags.c_contiguous:
        return None
    if layout.shape == output.shape:
        return layout
    try:
        return np.reshape(layout, output.shape, copy=False)
    except ValueError:
        return None


def fits_gemm(layout: Layout) -> bool:
    """Whether a product can read a matrix as it lies, row after row or column after column."""
    if layout.ndim < 2:
        return True
    rows, columns = layout.shape[-2:]
    down, across = (step // layout.itemsize for step in layout.strides[-2:])
    return (down == columns and across == 1) or (down == 1 and across == rows)
