"""Attention on a CPU: query heads that read the same keys, as rows of one product.

MLX's own makes a product for each head, and sums the gradient of keys over the heads that read
them, which takes a CPU long. Here the heads of a group are stacked, so a group is one
product and there is nothing to sum. What is computed is the same. On a GPU MLX's own is called.

Shapes: R rows, H query heads, K key-value heads, N new positions, M positions of keys, D head size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from mlx_dpo.models.device import on_gpu


class _Together:
    """Stands for `mx.fast.scaled_dot_product_attention` while a block builds a graph.

    Args:
        original: That function.
    """

    def __init__(self, original: Callable[..., mx.array]) -> None:
        self.original = original
        self._masks: dict[tuple[Any, ...], tuple[Any, mx.array]] = {}

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        """The same: q (R, H, N, D), k and v (R, K, M, D)."""
        heads, mask = q.shape[1] // k.shape[1], options.get("mask")
        by_head = isinstance(mask, mx.array) and mask.ndim > 2 and mask.shape[-3] > 1
        if heads == 1 or by_head or options.get("sinks") is not None:
            return self.original(q, k, v, **options)
        if mask is not None:
            key = (heads, q.shape[2], k.shape[2], q.dtype, id(mask))
            if key not in self._masks:  # a layer's is that of the layers before it
                self._masks[key] = mask, _added(mask, q, k.shape[2], heads)
            options["mask"] = self._masks[key][1]
        rows = q.reshape(q.shape[0], k.shape[1], heads * q.shape[2], q.shape[3])
        return self.original(rows, k, v, **options).reshape(*q.shape[:3], v.shape[3])


@contextmanager
def heads_together() -> Iterator[None]:
    """While the block builds a graph, mlx-lm's models use this: all call one function of MLX.

    Another thread that builds one meanwhile gets the same numbers.
    """
    if on_gpu() or is_together():  # of a block around it
        yield
        return
    original = mx.fast.scaled_dot_product_attention
    mx.fast.scaled_dot_product_attention = _Together(original)
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = original


def is_together() -> bool:
    """Whether a block of `heads_together` has begun."""
    return isinstance(mx.fast.scaled_dot_product_attention, _Together)


def _added(mask: Any, q: mx.array, keys: int, heads: int) -> mx.array:
    """What is added to the scores of `heads` stacked heads: (..., heads * N, M).

    MLX writes the least number over masked scores, and has to do so in the gradient too. Added, it
    leaves nothing of a score either, and the gradient passes through. Only a query that may attend
    to nothing gets another gradient: padding, of which nothing is scored.
    """
    if isinstance(mask, str):  # "causal"
        queries = mx.arange(keys - q.shape[2], keys)
        mask = queries[:, None] >= mx.arange(keys)
    if mask.dtype == mx.bool_:
        least = mx.array(mx.finfo(q.dtype).min, q.dtype)
        mask = mx.where(mask, mx.array(0, q.dtype), least)
    mask = mx.broadcast_to(mask, (*mask.shape[:-2], q.shape[2], keys))
    return mx.tile(mask, (heads, 1))
