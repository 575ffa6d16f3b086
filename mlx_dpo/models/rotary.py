"""Rotary positions where mlx-lm's modules compute others than transformers does.

Set right on the modules of a built model: YaRN's `attention_factor`, `truncate` and missing
entries, and longrope's factors for short texts: mlx-lm always takes those for long ones.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn

_YARN = ("YarnRoPE", "DeepseekV2YarnRotaryEmbedding")  # classes of mlx-lm's
_ORIGINAL = "original_max_position_embeddings"

# Architectures in which transformers takes that length from beside the rotary settings, and what it
# is by default.
_OWN_ORIGINAL = {"phi3": 4096}


def scaling_of(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings of a language model's config in either spelling; empty without any.

    Where both are there, transformers follows the older `rope_scaling`.
    """
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), dict) and config[key]:
            return dict(config[key])
    return {}


def rope_type(settings: dict[str, Any], kind: str = "") -> str:
    """The kind of scaling, as transformers reads it: ``default``, ``linear``, ``yarn``, ...

    Args:
        settings: Rotary settings.
        kind: The architecture.
    """
    names = ("rope_type",) if kind.startswith("gemma3") else ("rope_type", "type")
    found = next((str(settings[name]) for name in names if settings.get(name)), "default")
    if kind == "phi3" and found in ("su", "yarn"):
        return "longrope"
    return "default" if found == "mrope" else found


def is_scaled(config: dict[str, Any]) -> bool:
    """Whether a language model's positions are stretched, in some kind of its layers at least."""
    rope = scaling_of(config)
    inner = [each for each in rope.values() if isinstance(each, dict)]
    return any(rope_type(each) != "default" for each in inner or [rope])


def correct_rotary(model: nn.Module, kind: str, config: dict[str, Any]) -> None:
    """Make the rotary modules of a built model compute what transformers does.

    Args:
        model: As mlx-lm builds it.
        kind: The architecture of its language model.
        config: Of the language model, in the spelling mlx-lm reads.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.children().items()
        if type(child).__name__ in (*_YARN, "SuScaledRoPE")
    ]
    if not found:
        return
    rope = scaling_of(config)
    inner = [each for each in rope.values() if isinstance(each, dict)]
    for parent, name, child in found:
        names = ("yarn",) if type(child).__name__ in _YARN else ("longrope", "su")
        settings = next((each for each in inner if rope_type(each) in names), rope)
        settings = {"rope_theta": config.get("rope_theta"), **settings}
        positions = int(config.get("max_position_embeddings") or 0)
        original = int(settings.get(_ORIGINAL) or positions)
        if names[0] == "yarn":
            truncate = rope.get("truncate", True)
            _set_yarn(child, settings, positions, original, truncate=truncate)
        else:
            if kind in _OWN_ORIGINAL:
                original = int(config.get(_ORIGINAL) or _OWN_ORIGINAL[kind])
            setattr(parent, name, _long_rope(child, settings, positions, original))


class LongRope(nn.Module):
    """Rotary positions with one set of frequencies for texts up to a length, another beyond.

    Args:
        dims: Of a head, those that are rotated.
        short: float32 (dims / 2,), wavelengths up to `original` tokens.
        long: The same beyond.
        original: Tokens.
        scale: Of what is rotated.

    Attributes:
        original_max_position_embeddings: `original`.
    """

    def __init__(
        self, dims: int, short: mx.array, long: mx.array, original: int, scale: float
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dims, self.scale = dims, scale
        self.original_max_position_embeddings = original
        self._short, self._long = short, long

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """Rotate.

        Args:
            x: (B, heads, T, D).
            offset: Position of the first token, of all rows or of each.
        """
        end = x.shape[-2] + (offset.max() if isinstance(offset, mx.array) else offset)
        freqs = mx.where(end > self.original_max_position_embeddings, self._long, self._short)
        if self.scale != 1:
            x = x.at[..., : self.dims].multiply(self.scale)
        return mx.fast.rope(
            x, self.dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=freqs
        )


def longest_short_text(model: nn.Module) -> int | None:
    """Tokens up to which a model with `LongRope` has one set of frequencies; None without it."""
    lengths = [m.original_max_position_embeddings for m in model.modules() if type(m) is LongRope]
    return min(lengths, default=None)


def _long_rope(module: Any, settings: dict[str, Any], positions: int, original: int) -> LongRope:
    dims = module.dim
    factor = settings.get("factor") or positions / original
    scale = settings.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    waves = _waves(settings["rope_theta"], dims)
    short, long = (
        mx.array(settings[key], mx.float32) * waves for key in ("short_factor", "long_factor")
    )
    return LongRope(dims, short, long, original, scale)


def _set_yarn(
    module: Any, settings: dict[str, Any], positions: int, original: int, *, truncate: bool
) -> None:
    dims, base = 2 * int(module._freqs.size), float(settings["rope_theta"] or 10_000.0)
    factor = settings.get("factor") or positions / original
    fast, slow = settings.get("beta_fast") or 32, settings.get("beta_slow") or 1

    def dimension(rotations: float) -> float:
        return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(fast), dimension(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    ramp = (mx.arange(dims // 2, dtype=mx.float32) - low) / ((high - low) or 0.001)
    stretched = mx.clip(ramp, 0, 1)
    waves = _waves(base, dims)
    module._freqs = 1 / (stretched / (factor * waves) + (1 - stretched) / waves)
    module.mscale = _yarn_scale(settings, factor)


def _yarn_scale(settings: dict[str, Any], factor: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if (given := settings.get("attention_factor")) is not None:
        return float(given)
    above, below = settings.get("mscale"), settings.get("mscale_all_dim")
    return scale(float(above)) / scale(float(below)) if above and below else scale(1.0)


def _waves(base: float, dims: int) -> mx.array:
    return base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims)
