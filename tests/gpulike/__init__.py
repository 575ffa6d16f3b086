"""Habits of a GPU, on the CPU: `pytest -p tests.gpulike`, or `make test-gpulike`.

It shows which code leans on what only the CPU does. It is no evidence of Metal's speed or memory.

* A product's last bits depend on its shape, because other shapes take other kernels, which sum in
  another order: relative noise of `NOISE`, drawn from the shapes.
* The gradient of a gather adds the rows of equal indices in an order that differs each time, as
  Metal's atomics do. Nothing else in MLX's training operations on Metal is known to differ.
* With GPULIKE_TF32=1, which stands for an M5, float32 products are computed from operands of 10
  mantissa bits, unless MLX_ENABLE_TF32 is 0 at the first product: there MLX reads it, and so does
  this. The noise then decides what is visible, as on the CPU the cut alone is alike for all shapes.

Only forward products are noisy and cut; those of gradients are MLX's own, on the cut operands.
Python processes that a test starts get the same habits: `sitecustomize.py` beside this file.
"""

import os
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

NOISE = 6e-8
_TF32_BITS = 0xFFFFE000  # sign, exponent and 10 bits of the mantissa

_matmul, _getitem, _take = mx.matmul, mx.array.__getitem__, mx.take
_orders: dict[int, np.random.Generator] = {}  # by process: a fork must not repeat its parent's
_cuts: list[bool] = []  # what the switch was at the first product


def pytest_configure(config: pytest.Config) -> None:
    """Begin, in this process and the Python processes that it starts."""
    install()
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # pytest-xdist's workers are pytest processes, which come here themselves
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def pytest_report_header(config: pytest.Config) -> str:
    """A line above the tests."""
    return f"gpulike: noise {NOISE}, gathers in random order, M5 {_is_m5()}"


def install() -> None:
    """Exchange MLX's products and gathers for ones with the habits of a GPU."""
    exchanged: Any = mx
    exchanged.array.__matmul__ = exchanged.matmul = product
    exchanged.addmm = addmm
    exchanged.fast.scaled_dot_product_attention = attention
    exchanged.array.__getitem__ = gather
    exchanged.take = take


def product(a: mx.array, b: mx.array, **options: Any) -> mx.array:
    """`mx.matmul`, with last bits that follow from the shapes."""
    result = _matmul(_cut(a), _cut(b), **options)
    if result.dtype != mx.float32:
        return result
    return result * _noise(f"{a.shape} {b.shape}", result.shape[-1])


@cache
def _noise(shapes: str, columns: int) -> mx.array:
    """A factor for each column of a product: 1, or a few of its last bits more or less."""
    generator = np.random.default_rng(zlib.crc32(shapes.encode()))
    return mx.array((1 + NOISE * generator.normal(size=columns)).astype(np.float32))


def addmm(
    c: mx.array, a: mx.array, b: mx.array, alpha: float = 1.0, beta: float = 1.0, **options: Any
) -> mx.array:
    """`mx.addmm`, of such a product."""
    sum_of_both: mx.array = beta * c + alpha * product(a, b)
    return sum_of_both


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: Any = None,
    sinks: mx.array | None = None,
    **options: Any,
) -> mx.array:
    """Attention of two such products; shapes as in `mx.fast.scaled_dot_product_attention`."""
    groups = q.shape[1] // k.shape[1]
    k, v = (mx.repeat(array, groups, axis=1) for array in (k, v))
    scores = product(q * scale, k.swapaxes(-1, -2))
    new, total = scores.shape[-2:]
    if isinstance(mask, str):
        mask = mx.arange(total - new, total)[:, None] >= mx.arange(total)
    if mask is not None and mask.dtype == mx.bool_:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    if sinks is not None:  # a score for each head that takes a share and gives nothing
        column = mx.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))
        scores = mx.concatenate([scores, column.astype(scores.dtype)], axis=-1)
    return product(mx.softmax(scores, axis=-1, precise=True)[..., :total], v)


def gather(array: mx.array, index: Any) -> mx.array:
    """``array[index]``; the gradient of a row is summed in random order where it is read twice.

    Gathered in that order, and put back in the right one: the gradient comes in the same way.
    """
    is_gather = isinstance(index, mx.array) and index.ndim > 0 and index.size > 1
    if not is_gather or index.dtype == mx.bool_ or not mx.issubdtype(array.dtype, mx.floating):
        return _getitem(array, index)
    orders = _orders.setdefault(os.getpid(), np.random.default_rng())
    order = orders.permutation(index.size)
    rows = _getitem(array, _getitem(index.reshape(-1), mx.array(order)))
    return _getitem(rows, mx.array(np.argsort(order))).reshape(*index.shape, *array.shape[1:])


def take(array: mx.array, indices: Any, axis: int | None = None, **options: Any) -> mx.array:
    """`mx.take`, in random order along the first axis."""
    if axis == 0 and not options:
        return gather(array, indices)
    return _take(array, indices, axis, **options)


def _is_m5() -> bool:
    return os.environ.get("GPULIKE_TF32", "0") == "1"


def _cut(x: mx.array) -> mx.array:
    """The operand of a product as an M5 reads it."""
    if not _cuts:
        _cuts.append(_is_m5() and os.environ.get("MLX_ENABLE_TF32", "1") != "0")
    if x.dtype != mx.float32 or not _cuts[0]:
        return x
    cut = (x.view(mx.uint32) & _TF32_BITS).view(mx.float32)
    return x + mx.stop_gradient(cut - x)
