"""The device that MLX computes on: what numbers depend on, and the memory it recommends."""

import os
import re
from typing import Any

import mlx.core as mx
from threadpoolctl import threadpool_info

TF32_SWITCH = "MLX_ENABLE_TF32"


def on_gpu() -> bool:
    """Whether MLX computes on a GPU, by Metal or CUDA."""
    return mx.default_device().type == mx.gpu


def architecture() -> str:
    """Generation of the device, such as ``applegpu_g17s``; empty where MLX does not know it."""
    info: dict[str, Any] = mx.device_info()
    return str(info.get("architecture", ""))


def recommended_here() -> int | None:
    """Bytes this device recommends to keep within; None where it does not say, as on a CPU.

    CUDA names all that it has.
    """
    info: dict[str, Any] = mx.device_info()
    recommended = info.get("max_recommended_working_set_size") or info.get("total_memory")
    return int(recommended) if recommended else None


def tf32_enabled() -> bool:
    """Whether float32 products may be computed from operands of 10 mantissa bits.

    That is the user's choice: `mlx_dpo` turns it off where the environment does not name it. Where
    it is on, MLX does so on an M5 and on CUDA; other devices compute in float32 all the same.
    """
    number = re.match(r"\s*[+-]?\d+", os.environ.get(TF32_SWITCH, "1"))  # as MLX reads it
    return number is not None and int(number[0]) != 0


def blas() -> str:
    """The BLAS of MLX's CPU backend and its threads: both decide the last bits of a product.

    Such as ``openblas 0.3.21 Cooperlake, 1 thread``; empty for the one in MLX's own wheel, for
    Accelerate, and where a GPU computes.
    """
    if on_gpu():
        return ""
    libraries = [
        f"{each['internal_api']} {each['version']} {each.get('architecture', '')}, "
        f"{each['num_threads']} thread{'s'[: each['num_threads'] != 1]}"
        for each in threadpool_info()
        if each["user_api"] == "blas" and "scipy_openblas" not in each["prefix"]  # numpy's own
    ]
    return "; ".join(sorted(libraries))
