"""Seconds, and the environment they are taken in. A rival's process imports this too."""

import os
import sys
import time
from pathlib import Path

import mlx.core as mx

_BLAS_FILES = (
    "usr/lib/*/openblas-pthread/libopenblas.so.0",
    "usr/lib/*/libopenblas.so.0",
    "usr/lib64/libopenblasp.so.0",
    "usr/lib64/libopenblas.so.0",
)
_THREADS = (
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
    *("MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
)


def now() -> float:
    """Seconds from some start.

    On a CPU those are the process's own, over all threads: what other programs do meanwhile
    changes them little. A GPU's work does not show there, so on one it is the clock.
    """
    return time.process_time() if mx.default_device() == mx.cpu else time.perf_counter()


def seconds_unit() -> str:
    """What `now` counts, for the head of a table."""
    return "CPU s" if mx.default_device() == mx.cpu else "s"


def one_thread_environment() -> dict[str, str]:
    """Environment in which every BLAS uses one thread, and MLX a fast one where there is one."""
    environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
    if sys.platform == "linux" and not environment.get("LD_PRELOAD"):
        found = [path for pattern in _BLAS_FILES for path in sorted(Path("/").glob(pattern))]
        if found:
            environment["LD_PRELOAD"] = str(found[0])
    return environment
