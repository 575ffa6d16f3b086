"""Which architectures are written as GGUF, and what a file says of one.

The numbers are those that mlx-lm's model computes with, so that what config.json leaves out is
what was trained.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import UsageError

Floats = npt.NDArray[np.float32]

_SILU = (None, "silu", "swish")
_GELU = (None, "gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_EVERY = 6  # layers of a Gemma 3, in llama.cpp, of which the last has full attention


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        arch: Its key in `gguf.MODEL_ARCH`.
        is_turned: Whether llama.cpp rotates neighbouring rows of a head of queries and keys, where
            MLX and transformers rotate one half of its rows with the other.
        is_shifted: Whether norms are stored less 1, and llama.cpp wants them whole.
    """

    arch: str
    is_turned: bool = False
    is_shifted: bool = False


FAMILIES = {
    "llama": Family("LLAMA", is_turned=True),
    "mistral": Family("LLAMA", is_turned=True),
    "qwen2": Family("QWEN2"),
    "qwen3": Family("QWEN3"),
    "phi": Family("PHI2"),
    "phi3": Family("PHI3"),
    "gemma": Family("GEMMA", is_shifted=True),
    "gemma3_text": Family("GEMMA3", is_shifted=True),
}


def family_of(config: dict[str, Any]) -> Family:
    """The family of a config.json.

    Raises:
        UsageError: If GGUF is not written of it.
    """
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise UsageError(
            f"GGUF is not written of {kind!r} here, only of {', '.join(FAMILIES)}; --to mlx or "
            "--to torch writes it, and llama.cpp's own converter may read what --to torch writes"
        )
    family = FAMILIES[kind]
    computed = _GELU if family.is_shifted or family.arch == "PHI2" else _SILU
    named = config.get("hidden_activation") or config.get("hidden_act")  # Gemma 3 has the first
    if named not in computed:
        raise UsageError(
            f"config.json: hidden_act is {named!r}, and llama.cpp computes {computed[1]} for a "
            f"{kind}: it would be another model"
        )
    layers = config.get("layer_types")
    if family.arch != "GEMMA3" and isinstance(layers, list) and set(layers) - {"full_attention"}:
        raise UsageError(
            f"config.json: layer_types has others than full_attention, which llama.cpp does not "
            f"compute for a {kind}"
        )
    return family


@dataclass(frozen=True)
class Sizes:
    """Heads of a model's attention."""

    heads: int
    key_heads: int
    width: int  # of a head

    @classmethod
    def of(cls, args: Any) -> "Sizes":
        """From the arguments of mlx-lm's model."""
        heads = args.num_attention_heads
        width = getattr(args, "head_dim", None) or args.hidden_size // heads
        return cls(heads, args.num_key_value_heads or heads, width)


def describe(writer: Any, args: Any, config: dict[str, Any], folder: Path) -> Floats | None:
    """Say in a file what a model is.

    Args:
        writer: A `gguf.GGUFWriter`.
        args: The arguments of mlx-lm's model.
        config: Of the model, for what mlx-lm does not ask.
        folder: Of the model, for messages.

    Returns:
        The divisors of the rotary frequencies (head width / 2,), which are a tensor of the file;
        None for none.

    Raises:
        UsageError: If the model has rotary positions, or layers of a Gemma 3, that can't be said.
    """
    sizes = Sizes.of(args)
    positions = getattr(args, "max_position_embeddings", config.get("max_position_embeddings"))
    if positions is None:
        raise UsageError(f"{folder}: config.json has no max_position_embeddings, which GGUF needs")
    writer.add_vocab_size(args.vocab_size)
    writer.add_context_length(positions)
    writer.add_embedding_length(args.hidden_size)
    writer.add_block_count(args.num_hidden_layers)
    writer.add_feed_forward_length(args.intermediate_size)
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.key_heads)
    writer.add_key_length(sizes.width)
    writer.add_value_length(sizes.width)
    if hasattr(args, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(args.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(args.layer_norm_eps)
    writer.add_rope_dimension_count(int(sizes.width * getattr(args, "partial_rotary_factor", 1)))
    writer.add_rope_freq_base(float(args.rope_theta))
    if args.model_type == "gemma3_text":
        _describe_gemma3(writer, args, sizes, folder)
    return _scaling(writer, args, sizes.width, folder)


def _describe_gemma3(writer: Any, args: Any, sizes: Sizes, folder: Path) -> None:
    wanted = {"sliding_window_pattern": _EVERY, "query_pre_attn_scalar": sizes.width}
    for name, value in wanted.items():
        if getattr(args, name) != value:
            raise UsageError(
                f"{folder}: {name} is {getattr(args, name)}, and llama.cpp computes a Gemma 3 with "
                f"{value}: it would be another model"
            )
    writer.add_sliding_window(args.sliding_window)
    writer.add_rope_freq_base_swa(float(args.rope_local_base_freq))


def _scaling(writer: Any, args: Any, width: int, folder: Path) -> Floats | None:
    scaling = getattr(args, "rope_scaling", None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if getattr(args, "rope_traditional", False):
        raise UsageError(f"{folder}: has rope_traditional, which is not written as GGUF here")
    if kind == "default":
        return None
    if kind == "linear":
        from mlx_dpo.convert.gguf.package import package

        writer.add_rope_scaling_type(package().RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        return None
    if kind == "llama3":
        return _llama3(scaling, float(args.rope_theta), width)
    raise UsageError(
        f"{folder}: has rotary positions of kind {kind!r}, which are not written as GGUF here"
    )


def _llama3(scaling: dict[str, Any], base: float, width: int) -> Floats:
    """Slow frequencies are divided by `factor`, fast ones by 1, those between by between."""
    factor, low, high = (
        float(scaling[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    original = scaling["original_max_position_embeddings"]
    periods = 2 * math.pi * base ** (np.arange(0, width, 2, dtype=np.float64) / width)
    share = np.clip((original / periods - low) / (high - low), 0, 1)  # of the fast ones
    divisors: Floats = (1 / ((1 - share) / factor + share)).astype(np.float32)
    return divisors


def turned(matrix: Floats, heads: int) -> Floats:
    """Rows of queries or keys in the order of llama.cpp.

    Args:
        matrix: Of (heads * width, ...): of each head the rows of one half of the rotation, then
            those of the other.
        heads: How many there are.

    Returns:
        The two halves of each head interleaved.
    """
    halves = matrix.reshape(heads, 2, -1, *matrix.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(matrix.shape))


def turned_back(matrix: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """The inverse of `turned`, of rows of any kind."""
    pairs = matrix.reshape(heads, -1, 2, *matrix.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(matrix.shape))
