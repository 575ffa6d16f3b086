"""Models in Hugging Face layout: the only importer of mlx-lm's loaders."""

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError
from mlx_dpo.files import check_links
from mlx_dpo.models.dialects import check_sizes, mlx_config, model_classes, tied_entry_of_folder
from mlx_dpo.models.parameters import check_finite, check_safetensors, named_arrays

MAX_CONFIG = 4_000_000  # bytes

# What models call their tables of learned positions and of tokens.
_POSITIONS = ("wpe", "pos_embed", "embed_positions", "position_embeddings")
_TOKENS = (
    "embed_tokens",
    "wte",
    "token_embed",
    "tok_embeddings",
    "embed_in",
    "word_embeddings",
)


def load_folder(folder: Path, dtype: mx.Dtype = mx.float32) -> tuple[nn.Module, Any]:
    """A model folder's model and mlx-lm's tokenizer wrapper; see `load_model`."""
    return load_model(folder, dtype), load_tokenizer(folder)


def load_model(folder: Path, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """Load the weights of a model folder as MLX arrays.

    Args:
        folder: Holds ``config.json`` and ``model*.safetensors``.
        dtype: Of the parameters, whatever the file holds. At DPO learning rates an update is
            smaller than half a step of bfloat16: that wants `mlx_dpo.training.rounding`.

    Raises:
        UsageError: If a file is missing or damaged, the architecture is unknown, or the model is
            quantised.
    """
    config = trainable_config(folder)
    _check_weight_files(folder, config)
    from mlx_lm.utils import load_model as load

    model: nn.Module
    try:
        config |= tied_entry_of_folder(config, folder)
        model, _ = load(
            folder,
            lazy=True,
            model_config=config | mlx_config(config, normalised(config)),
            get_model_classes=model_classes,
        )
        model.set_dtype(dtype)
        mx.eval(model.parameters())
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None
    except Exception as error:  # whatever mlx-lm meets in a folder, the folder is at fault
        raise UsageError(f"{folder}: cannot be loaded: {_one_line(error)}") from None
    check_finite(named_arrays(model.parameters()), folder)
    return model


def load_tokenizer(folder: Path) -> Any:
    """mlx-lm's wrapper of a folder's tokenizer, which knows all ids the model ends with.

    Raises:
        UsageError: If there is none or it can't be loaded.
    """
    eos_ids = _eos_ids(folder, read_config(folder))
    from mlx_lm.utils import load_tokenizer as load

    try:
        # Left unset, transformers asks at a terminal whether to run code that the folder brings.
        return load(folder, {"trust_remote_code": False}, eos_token_ids=eos_ids)
    except Exception as error:  # the same for transformers
        raise UsageError(f"{folder}: no usable tokenizer: {_one_line(error)}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        UsageError: If it is missing or not a JSON object, or the folder has a link that leads out.
    """
    path = folder / "config.json"
    if folder.is_dir():
        check_links(folder)
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise UsageError(f"{path}: has more than {MAX_CONFIG} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder}: no config.json; a model folder holds one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON: {_one_line(error)}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path}: expected a JSON object")
    return config


def trainable_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, of a model that can be trained.

    Raises:
        UsageError: If it can't be read, the model is quantised, or it names code to run.
    """
    config = read_config(folder)
    _refuse_quantised(folder, config)
    if "model_file" in config:
        raise UsageError(f"{folder}: its config.json names code to run; that is never done here")
    return config


def normalised(config: dict[str, Any]) -> dict[str, Any]:
    """Entries of a config in the spelling mlx-lm reads, to lay over it.

    transformers 5 writes ``rope_parameters: {rope_theta: ...}``. Several of mlx-lm's models read
    only the older top-level ``rope_theta`` and silently go on with their default.

    Returns:
        Only what has to be added; empty for configs in the older spelling.
    """
    text = config.get("text_config")
    if isinstance(text, dict):  # a multimodal model holds its language model's config inside
        extra = normalised(text)
        return {"text_config": {**text, **extra}} if extra else {}
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    if isinstance(rope.get("full_attention"), dict):  # one set for each kind of layer (Gemma 3)
        extra = normalised({"rope_parameters": rope["full_attention"]})
        local = rope.get("sliding_attention")
        if isinstance(local, dict) and local.get("rope_theta") is not None:
            extra["rope_local_base_freq"] = local["rope_theta"]
        return extra
    known = ("rope_theta", "partial_rotary_factor")
    extra = {key: rope[key] for key in known if rope.get(key) is not None}
    if rope.get("rope_type", "default") != "default":
        extra["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    return extra


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
    """Refuse token ids and lengths the model has no row for: MLX reads past the end unasked.

    Args:
        model: The model.
        folder: Where it came from, for the message.
        largest_id: Largest token id it will meet.
        longest: Longest sequence it will meet.

    Raises:
        UsageError: If it can't embed them.
    """
    positions, tokens = _table_rows(model, _POSITIONS), _table_rows(model, _TOKENS)
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


def num_positions(model: nn.Module) -> int | None:
    """Length of a model's table of learned positions; None where it has none."""
    return _table_rows(model, _POSITIONS)


def _table_rows(model: nn.Module, names: tuple[str, ...]) -> int | None:
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in names and isinstance(module, nn.Embedding):
            return int(module.weight.shape[0])
    return None


def _refuse_quantised(folder: Path, config: dict[str, Any]) -> None:
    text_config = config.get("text_config")
    holders = [config, text_config] if isinstance(text_config, dict) else [config]
    if any(
        holder.get(key) for holder in holders for key in ("quantization", "quantization_config")
    ):
        raise UsageError(
            f"{folder}: the model is quantised, and its weights can't be trained; start from the "
            "full-precision checkpoint, or make one: mlx_lm.convert --dequantize"
        )


def _shapes(folder: Path) -> list[list[int]]:
    from safetensors import safe_open

    found = []
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            found += [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    return found


def _check_weight_files(folder: Path, config: dict[str, Any]) -> None:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UsageError(f"{folder}: no model*.safetensors in it")
    for file in files:
        check_safetensors(file)
    try:
        check_sizes(config, _shapes(folder))
    except UsageError as error:
        raise UsageError(f"{folder}: {error}") from None


def _eos_ids(folder: Path, config: dict[str, Any]) -> Any:
    generation = folder / "generation_config.json"
    if generation.exists():
        try:
            return json.loads(generation.read_text(encoding="utf-8"))["eos_token_id"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
    return config.get("eos_token_id")


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
