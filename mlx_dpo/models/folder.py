"""Model folders in Hugging Face layout: checked and loaded by mlx-lm, by no other file."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.models.adaptable import wrapped_module
from mlx_dpo.models.config import (
    checked_config,
    is_quantised,
    read_config,
    read_json,
    stored_shapes,
)
from mlx_dpo.models.dialects import check_sizes, for_mlx, model_classes, tied_entry_of_folder
from mlx_dpo.models.packed import multiply_dense
from mlx_dpo.models.parameters import check_finite, named_arrays, tensor_shapes
from mlx_dpo.models.parts import is_embedding
from mlx_dpo.models.rotary import longest_short_text
from mlx_dpo.models.tokenizer import load_tokenizer
from mlx_dpo.models.verified import exact_up_to

INDEX = "model.safetensors.index.json"
# What architectures call their tables of learned positions and of tokens.
_POSITIONS = ("wpe", "pos_embed", "embed_positions", "position_embeddings")
_TOKENS = (
    *("embed_tokens", "wte", "token_embed", "tok_embeddings", "embed_in", "word_embeddings"),
)


def load_folder(folder: Path, dtype: mx.Dtype | None = mx.float32) -> tuple[nn.Module, Any]:
    """A model folder's model and mlx-lm's tokenizer wrapper; see `load_model`."""
    return load_model(folder, dtype), load_tokenizer(folder)


def load_model(folder: Path, dtype: mx.Dtype | None = mx.float32) -> nn.Module:
    """Load the weights of a model folder as MLX arrays.

    Quantised weights stay packed; on a CPU their layers multiply by dense ones (`models.packed`).

    Args:
        folder: Holds ``config.json`` and ``model*.safetensors``.
        dtype: Of the parameters of floating point, whatever the file holds; None for that of the
            file. At DPO learning rates an update of a weight is smaller than half a step of
            bfloat16, which needs `mlx_dpo.training.optimizers.StochasticRounding`.

    Raises:
        UsageError: If a file is missing or damaged, or the architecture or packing is unknown.
    """
    config = checked_config(folder)
    shapes = tensor_shapes(folder)
    _check_index(folder)
    try:
        check_sizes(config, stored_shapes(config, shapes))
        if not is_quantised(config):
            _check_floats(shapes)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    from mlx_lm.utils import load_model as load

    model: nn.Module
    try:
        config |= tied_entry_of_folder(config, folder)
        model, _ = load(
            folder, lazy=True, model_config=for_mlx(config), get_model_classes=model_classes
        )
        if dtype is not None:
            model.set_dtype(dtype)
        mx.eval(model.parameters())
        if is_quantised(config):
            multiply_dense(model)
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    except Exception as error:  # mlx-lm raises anything for a folder that is wrong
        raise UsageError(f"{folder}: cannot be loaded: {one_line(error)}") from None
    check_finite(named_arrays(model.parameters()), folder)
    return model


def _check_index(folder: Path) -> None:
    """Refuse files of weights that the index does not name: which of two would win is chance."""
    if not (folder / INDEX).is_file():
        return
    places = read_json(folder / INDEX).get("weight_map")
    named = set(map(str, places.values())) if isinstance(places, dict) else set[str]()
    found = sorted(file.name for file in folder.glob("model*.safetensors"))
    if stray := [name for name in found if name not in named] if named & set(found) else []:
        raise UsageError(
            f"{folder}: {INDEX} does not name {stray[0]}, which may be left from an older save; "
            "move it out of the folder"
        )


def _check_floats(shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Refuse weights of whole numbers, which no layer computes with unless they are packed."""
    for name, (_, code) in shapes.items():
        if name.endswith(".weight") and code.startswith(("I", "U", "BOOL")):
            raise UsageError(
                f"{name} is stored as {code}, and config.json names no quantization; expected "
                "float32, float16 or bfloat16"
            )


def model_digest(weights: str, folder: Path) -> str:
    """sha256 of all that decides a model's log-probs: parameters, config, and mlx-lm's version.

    Args:
        weights: `fingerprint` of the model.
        folder: The folder it was loaded from.
    """
    digest = hashlib.sha256(weights.encode())
    digest.update(json.dumps(read_config(folder), sort_keys=True).encode())
    digest.update(version("mlx-lm").encode())
    return digest.hexdigest()


def check_ids(model: nn.Module, folder: Path, *, largest_id: int, longest: int) -> None:
    """Refuse token ids and lengths the model has no row for: MLX reads past the end unchecked.

    Args:
        model: The model.
        folder: Where it came from, for the message.
        largest_id: Largest token id in the data.
        longest: Longest sequence in the data, in tokens.

    Raises:
        UsageError: If the model can't embed them.
    """
    positions, tokens = num_positions(model), _num_rows(model, _TOKENS)
    _check_exact(model, folder, longest)
    if positions is not None and longest > positions:
        raise UsageError(
            f"{folder}: has {positions} positions, and the longest row needs {longest}; "
            f"pass --max-length {positions}"
        )
    if tokens is not None and largest_id >= tokens:
        raise UsageError(
            f"{folder}: its tokenizer gives id {largest_id}, and its embedding ends at "
            f"{tokens - 1}: the tokenizer is not this model's"
        )


def _check_exact(model: nn.Module, folder: Path, longest: int) -> None:
    """Refuse rows beyond the length up to which the model is computed as transformers does."""
    limit, short = exact_up_to(read_config(folder)), longest_short_text(model)
    if limit is not None and longest > limit:
        raise UsageError(
            f"{folder}: mlx-lm computes what transformers does up to {limit} tokens (it leaves out "
            f"the window), and the longest row needs {longest}; pass --max-length {limit}"
        )
    if short is not None and longest > short:
        raise UsageError(
            f"{folder}: its longrope positions have other factors in batches beyond {short} "
            f"tokens, and the longest row needs {longest}; pass --max-length {short}"
        )


def num_positions(model: nn.Module) -> int | None:
    """Length of a model's table of learned positions; None where it has none."""
    return _num_rows(model, _POSITIONS)


def _num_rows(model: nn.Module, names: tuple[str, ...]) -> int | None:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in names and is_embedding(module):
            return int(wrapped_module(module).weight.shape[0])
    return None
