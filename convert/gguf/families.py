"""Which architectures are written as GGUF, and what a file says of one.

The numbers are those that mlx-lm's model computes with, so that what config.json leaves out is
what was trained.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.gguf.positions import Floats, describe_positions
from mlx_dpo.errors import UsageError

_SILU = (None, "silu", "swish")
_GELU = (None, "gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_SLIDING = ("GEMMA2", "GEMMA3")  # in some layers
_LARGEST_GEMMA2 = 46  # layers of the one whose attention llama.cpp scales by another width
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
    "gemma2": Family("GEMMA2", is_shifted=True),
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
    if (
        not family.arch.startswith("GEMMA")
        and isinstance(layers, list)
        and set(layers) - {"full_attention"}
    ):
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


def describe(writer: Any, model: Any, config: dict[str, Any], folder: Path) -> dict[str, Floats]:
    """Say in a file what a model is.

    Args:
        writer: A `gguf.GGUFWriter`.
        model: As mlx-lm builds it.
        config: Of the model, for what mlx-lm does not ask.
        folder: Of the model, for messages.

    Returns:
        Tensors of the file that are none of the model's, as from `describe_positions`.

    Raises:
        UsageError: If the model has rotary positions, or layers of a Gemma, that can't be said.
    """
    args = model.args
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
    if args.model_type == "gemma2":
        _describe_gemma2(writer, args, config, sizes, folder)
    elif args.model_type == "gemma3_text":
        _describe_gemma3(writer, args, sizes, folder)
    return describe_positions(writer, model, config, folder)


def _describe_gemma2(
    writer: Any, args: Any, config: dict[str, Any], sizes: Sizes, folder: Path
) -> None:
    is_largest = args.num_hidden_layers == _LARGEST_GEMMA2
    width = args.hidden_size // sizes.heads if is_largest else sizes.width
    _check_gemma(args, {"query_pre_attn_scalar": width}, folder)
    writer.add_attn_logit_softcapping(args.attn_logit_softcapping)
    writer.add_final_logit_softcapping(args.final_logit_softcapping)
    # Where it is null, every position is within it.
    window = config.get("sliding_window", 4096)
    writer.add_sliding_window(window or config["max_position_embeddings"])


def _describe_gemma3(writer: Any, args: Any, sizes: Sizes, folder: Path) -> None:
    wanted = {"sliding_window_pattern": _EVERY, "query_pre_attn_scalar": sizes.width}
    _check_gemma(args, wanted, folder)
    writer.add_sliding_window(args.sliding_window)
    writer.add_rope_freq_base_swa(float(args.rope_local_base_freq))


def _check_gemma(args: Any, wanted: dict[str, int], folder: Path) -> None:
    for name, value in wanted.items():
        if getattr(args, name) != value:
            raise UsageError(
                f"{folder}: {name} is {getattr(args, name)}, and llama.cpp computes a "
                f"{args.model_type} with {value}: it would be another model"
            )


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
