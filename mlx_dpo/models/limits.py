"""How much memory MLX keeps beside what it uses, and how much of it is pinned.

MLX keeps freed buffers for whoever asks next, by default up to 1.5 times what the device
recommends: more than the machine has. Pinned (wired) memory is never swapped out, and pinning all
that is recommended has brought whole machines down (mlx #3186).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

CACHE_SHARE = 1 / 8  # of what the device recommends: freed buffers that are kept
WIRED_SHARE = 0.7  # of the same: memory that is pinned
CACHE_BYTES = 512 * 2**20  # where the device recommends nothing, such as a CPU


@contextmanager
def limited_memory() -> Iterator[None]:
    """Bound MLX's buffer cache and what it pins; the old limits come back at the end."""
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
    """Keep no more freed buffers than were ever in use at once: what a step can ask for again.

    Of a small model the share would be many steps' buffers, of sizes that hardly come back.
    """
    mx.set_cache_limit(min(_cache_bytes(), mx.get_peak_memory()))


def pin_a_share() -> int | None:
    """Pin `WIRED_SHARE` of what the device recommends (before macOS 15 MLX pins nothing).

    Returns:
        The limit that held before, in bytes; None without Metal.
    """
    if not mx.metal.is_available():
        return None
    return mx.set_wired_limit(int(WIRED_SHARE * _recommended()))


def _cache_bytes() -> int:
    return int(CACHE_SHARE * _recommended()) or CACHE_BYTES


def _recommended() -> int:
    info: dict[str, Any] = mx.device_info()
    return int(info.get("max_recommended_working_set_size", 0))
