"""Limits of MLX's memory: what it may hold in all, what of that is cache, and what is pinned.

MLX keeps freed buffers for later allocations. Its own limit for active and cached memory together
is 1.5 times what the device recommends, or nearly all of the machine's memory. With a lower one it
frees cached buffers first, and then waits for running work before it schedules more. Pinned (wired)
memory is never swapped out, and pinning all that is recommended has crashed whole machines
(mlx #3186).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx

from mlx_dpo.models.device import recommended_here

MEMORY_SHARE = 0.95  # active and cached memory, as a share of what the device recommends
CACHE_SHARE = 1 / 8  # cache before the peak of a step is known, as a share of the same
WIRED_SHARE = 0.7  # pinned memory, as a share of the same
CACHE_BYTES = 512 * 2**20  # largest cache where the device recommends nothing, as a CPU does


@contextmanager
def limited_memory(budget: int | None = None) -> Iterator[None]:
    """Limit MLX's memory while the block runs; the old limits are restored at the end.

    Args:
        budget: Bytes that active and cached memory together may take, at most `MEMORY_SHARE` of
            what the device recommends; None for that share, or for no limit where the device
            recommends nothing.
    """
    recommended = recommended_here() or 0
    bounds = [int(MEMORY_SHARE * recommended) if recommended else None, budget]
    memory = min((bound for bound in bounds if bound is not None), default=None)
    old_memory = None if memory is None else mx.set_memory_limit(memory)
    old_cache = mx.set_cache_limit(int(CACHE_SHARE * recommended) or CACHE_BYTES)
    old_wired = pin_a_share()
    try:
        yield
    finally:
        if old_memory is not None:
            mx.set_memory_limit(old_memory)
        mx.set_cache_limit(old_cache)
        if old_wired is not None:
            _set_wired_limit(old_wired)


def follow_peak() -> None:
    """Limit MLX's buffer cache to what a step has used beyond what is held between steps.

    The next step can ask for no more again. A smaller cache would be freed to the device and filled
    with zeros anew in each step; a larger one holds buffers whose sizes never recur.
    """
    used = mx.get_peak_memory()
    if recommended := recommended_here():
        mx.set_cache_limit(min(int(MEMORY_SHARE * recommended), used - mx.get_active_memory()))
    else:
        mx.set_cache_limit(min(CACHE_BYTES, used))


def pin_a_share() -> int | None:
    """Pin `WIRED_SHARE` of what the device recommends (before macOS 15 MLX pins nothing).

    Returns:
        The previous limit in bytes; None without Metal.
    """
    if not mx.metal.is_available():
        return None
    return _set_wired_limit(int(WIRED_SHARE * (recommended_here() or 0)))


def _set_wired_limit(limit: int) -> int:
    """Change the limit under no running evaluation: not on mlx-lm's stream for generation either.

    `mx.synchronize` waits for the default stream only.
    """
    mx.synchronize()
    if (generate := sys.modules.get("mlx_lm.generate")) is not None:
        mx.synchronize(generate.generation_stream)
    return mx.set_wired_limit(limit)
