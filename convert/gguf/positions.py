"""Rotary positions as GGUF describes them.

Frequencies are read off the built model; where llama.cpp computes its own from a few numbers,
these are computed here too, and have to be the model's.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.gguf.package import package
from mlx_dpo.errors import UsageError
from mlx_dpo.models.rotary import rope_type

Floats = npt.NDArray[np.float32]

_FREQUENCIES = "rope_freqs.weight"

# By architecture, kinds of positions that llama.cpp computes for it.
_KINDS = {
    "llama": ("linear", "llama3", "yarn"),
    "qwen2": ("linear", "yarn"),
    "qwen3": ("linear", "yarn"),
    "phi3": ("longrope",),
    "gemma3": ("linear",),
}


def describe_positions(
    writer: Any, model: Any, config: dict[str, Any], folder: Path
) -> dict[str, Floats]:
    """Say in a file how a model rotates positions.

    Args:
        writer: A `gguf.GGUFWriter`.
        model: As mlx-lm builds it, corrected.
        config: Of the model, for what mlx-lm does not ask.
        folder: Of the model, for messages.

    Returns:
        Tensors of the file by name: float32 (rotated width / 2,), divisors of the frequencies.

    Raises:
        UsageError: If llama.cpp would compute others.
    """
    args = model.args
    writer.add_rope_freq_base(float(args.rope_theta))
    if getattr(args, "rope_traditional", False):
        raise UsageError(f"{folder}: has rope_traditional, which is not written as GGUF here")
    settings = getattr(args, "rope_scaling", None) or {}
    kind = "longrope" if settings.get("type") == "su" else rope_type(settings, args.model_type)
    if kind == "default":
        return {}
    if kind not in _KINDS.get(writer.arch, ()):
        raise UsageError(
            f"{folder}: has rotary positions of kind {kind!r}, which llama.cpp does not compute "
            f"for a {args.model_type}"
        )
    rope, base = model.layers[-1].self_attn.rope, float(args.rope_theta)
    if kind == "linear":
        writer.add_rope_scaling_type(package().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(settings["factor"]))
        return {}
    if kind == "longrope":
        return _longrope(writer, rope, base)
    if kind == "llama3":
        return {_FREQUENCIES: _divisors(rope._freqs, base)}
    tensors = _yarn(writer, rope, settings, base, config.get("max_position_embeddings", 0))
    if tensors is None:
        raise UsageError(
            f"{folder}: its yarn positions (beta_fast, beta_slow, truncate) are others than "
            f"llama.cpp computes for a {args.model_type}"
        )
    return tensors


def _longrope(writer: Any, rope: Any, base: float) -> dict[str, Floats]:
    writer.add_rope_scaling_type(package().RopeScalingType.LONGROPE)
    writer.add_rope_scaling_attn_factors(float(rope.scale))
    writer.add_rope_scaling_orig_ctx_len(rope.original_max_position_embeddings)
    return {
        "rope_factors_long.weight": _divisors(rope._long, base),
        "rope_factors_short.weight": _divisors(rope._short, base),
    }


def _yarn(
    writer: Any, rope: Any, settings: dict[str, Any], base: float, positions: int
) -> dict[str, Floats] | None:
    """None where llama.cpp computes other frequencies, and takes none from the file."""
    divisors, scale = _divisors(rope._freqs, base), float(rope.mscale)
    original = settings.get("original_max_position_embeddings") or positions
    factor = settings.get("factor") or positions / original
    if np.allclose(divisors, _yarn_divisors(divisors.size, base, original, factor), rtol=1e-4):
        writer.add_rope_scaling_type(package().RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(factor))
        writer.add_rope_scaling_orig_ctx_len(int(original))
        writer.add_rope_scaling_attn_factors(scale / (1 + 0.1 * math.log(factor)))
        return {}
    if writer.arch != "llama":
        return None
    writer.add_rope_scaling_attn_factors(scale)
    return {_FREQUENCIES: divisors}


def _yarn_divisors(size: int, base: float, original: int, factor: float) -> npt.NDArray[Any]:
    """As llama.cpp computes them for most architectures: these have no other turns in the file."""
    ends = [size * math.log(original / (turns * 2 * math.pi)) / math.log(base) for turns in (32, 1)]
    first, last = max(math.floor(ends[0]), 0), min(math.ceil(ends[1]), 2 * size - 1)
    ramp = np.clip((np.arange(size) - first) / max(last - first, 0.001), 0, 1)
    stretched: npt.NDArray[Any] = 1 / (ramp / factor + 1 - ramp)
    return stretched


def _divisors(waves: Any, base: float) -> Floats:
    """Of the frequencies whose inverses MLX rotates by."""
    plain = base ** (np.arange(0, 2 * waves.size, 2, dtype=np.float64) / (2 * waves.size))
    divisors: Floats = (np.array(waves) / plain).astype(np.float32)
    return divisors
