"""Limits of MLX's buffer cache and of the memory it pins.

MLX keeps freed buffers for later allocations, by default up to 1.5 times what the device
recommends: more than the machine has. Pinned (wired) memory is never swapped out, and pinning all
that is recommended has crashed whole machines (mlx #3186).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

CACHE_SHARE = 1 / 8  # largest cache, as a share of what the device recommends
WIRED_SHARE = 0.7  # pinned memory, as a share of the same
CACHE_BYTES = 512 * 2**20  # largest cache where the device recommends nothing, as a CPU does


@contextmanager
def limited_memory() -> Iterator[None]:
    """Limit MLX's buffer cache and pinned memory; the old limits are restored at the end."""
    cache = mx.set_cache_limit(_cache_bytes())
    wired = pin_a_share()
    try:
        yield
    finally:
        mx.set_cache_limit(cache)
        if wired is not None:
            mx.synchronize()  # the limit must not change under a running evaluation
            mx.set_wired_limit(wired)


def follow_peak() -> None:
    """Limit MLX's buffer cache to the peak so far: a step can ask for no more again.

    `CACHE_SHARE` far exceeds what a small model uses, and would fill with buffers whose sizes
    never recur.
    """
    mx.set_cache_limit(min(_cache_bytes(), mx.get_peak_memory()))


def pin_a_share() -> int | None:
    """Pin `WIRED_SHARE` of what the device recommends (before macOS 15 MLX pins nothing).

    Returns:
        The previous limit in bytes; None without Metal.
    """
    if not mx.metal.is_available():
        return None
    return mx.set_wired_limit(int(WIRED_SHARE * _recommended()))


def _cache_bytes() -> int:
    return int(CACHE_SHARE * _recommended()) or CACHE_BYTES


def _recommended() -> int:
    """Bytes the device should hold at most; 0 where it does not say. CUDA names all it has."""
    info: dict[str, Any] = mx.device_info()
    return int(info.get("max_recommended_working_set_size") or info.get("total_memory") or 0)
