"""What this machine is: device, memory, versions and the switches that change MLX's numbers.

Nothing here names a person, a folder, a host or a serial number: a description may be published.
"""

import os
import platform
import re
import sys
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.runs.folder import environment

TF32 = "MLX_ENABLE_TF32"
# A CUDA device also names its uuid and PCI address, which would tell one machine from another.
_LIMITS = (
    *("max_recommended_working_set_size", "max_buffer_length", "resource_limit"),
    *("total_memory", "compute_capability_major", "compute_capability_minor"),
)


def backend() -> str:
    """Which part of MLX computes by default: ``Metal``, ``CUDA`` or ``CPU``."""
    if mx.default_device() == mx.cpu:
        return "CPU"
    return "Metal" if mx.metal.is_available() else "CUDA"


def describe_machine() -> dict[str, Any]:
    """Device, memory in bytes, versions and limits, as plain data."""
    info: dict[str, Any] = mx.device_info()
    return {
        **environment(),
        "system": _system(),
        "backend": backend(),
        "architecture": info.get("architecture"),
        "memory_bytes": _memory_bytes(info),
        "limits": {name: info[name] for name in _LIMITS if name in info},
        "mlx_memory_limit_bytes": mx.get_memory_limit(),
        "tf32": tf32_switch(os.environ.get(TF32)),
        "blas": _blas(os.environ.get("LD_PRELOAD", "")),
    }


def tf32_switch(value: str | None) -> dict[str, Any]:
    """What decides whether a GPU may cut the operands of float32 products to 10 bits.

    MLX reads the variable before its first product and takes 1 where it is not set. This package
    sets 0 where it is not set: only another value is certainly the user's.

    Args:
        value: Of the environment variable.
    """
    return {"value": value, "set_by_user": value is not None and value != "0"}


def product_error(size: int = 512) -> float:
    """Largest error of a float32 product of two random (size, size) matrices.

    As a share of the largest entry: a few 1e-7 in float32, 8e-4 where operands are cut to 10 bits.
    """
    keys = mx.random.split(mx.random.key(0))
    a, b = (mx.random.normal((size, size), key=key) for key in keys)
    exact = np.array(a).astype(np.float64) @ np.array(b).astype(np.float64)
    return float(np.abs(np.array(a @ b) - exact).max() / np.abs(exact).max())


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    # A kernel somebody built may carry a name after its numbers.
    release = re.match(r"[\d.]*\d", platform.release())
    libc = " ".join(platform.libc_ver())
    return f"{platform.system()} {release[0] if release else ''} {libc}".strip()


def _memory_bytes(info: dict[str, Any]) -> int | None:
    if "memory_size" in info:
        return int(info["memory_size"])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None


def _blas(preloaded: str) -> str | None:
    """On Linux the library that multiplies on the CPU: MLX's own is several times slower."""
    if sys.platform != "linux" or backend() != "CPU":
        return None
    return "OpenBLAS, preloaded" if "openblas" in preloaded else "MLX's own"
