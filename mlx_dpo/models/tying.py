"""Whether a model's output layer is its table of embeddings: the config may leave it open.

Where config.json does not say, mlx-lm and transformers fall back to different defaults, and a
model whose output layer is dropped for its embeddings loads without a word and is another model.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_dpo.errors import UsageError

TIED = "tie_word_embeddings"
# Output layers, which hold the embeddings once more where the two are tied.
HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDING = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")


def is_head(name: str) -> bool:
    """Whether a tensor is an output layer, by its name."""
    return name.endswith(HEADS)


def is_embedding(name: str) -> bool:
    """Whether a tensor is the table of token embeddings, by its name."""
    return _EMBEDDING.search(name) is not None


def twin(name: str, arrays: Mapping[str, mx.array]) -> str | None:
    """The embeddings that a tensor repeats bit by bit."""
    others = [other for other in arrays if is_embedding(other) and other != name]
    return next((other for other in others if _same_bits(arrays[name], arrays[other])), None)


def tied_entry(config: dict[str, Any], arrays: Mapping[str, mx.array]) -> dict[str, Any]:
    """What the weights say of tying, where the config says nothing; to lay over it."""
    if TIED in config:
        return {}
    return {TIED: all(twin(name, arrays) for name in arrays if is_head(name))}


def tied_entry_of_folder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same for a folder, whose weights must not contradict its config.

    Raises:
        UsageError: If the config says tied and there is an output layer of its own.
    """
    arrays: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        arrays |= cast("dict[str, mx.array]", mx.load(str(file)))  # lazily: few are looked at
    for name in arrays:
        if config.get(TIED) and is_head(name) and twin(name, arrays) is None:
            raise UsageError(
                f"{TIED} is true, and {name} differs from the embeddings: it would be dropped"
            )
    return tied_entry(config, arrays)


def _same_bits(one: mx.array, other: mx.array) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return bool(mx.array_equal(one.view(mx.uint8), other.view(mx.uint8)))
