"""Models in Hugging Face layout: the only importer of mlx-lm's loaders."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mlx_dpo.errors import UsageError


def load_folder(folder: Path) -> tuple[nn.Module, Any]:
    """Load a model folder as float32 MLX arrays.

    float32 whatever the file holds: at DPO learning rates an update is smaller than half a step of
    bfloat16, and most weights would never move.

    Args:
        folder: Holds ``config.json``, ``model*.safetensors`` and a tokenizer.

    Returns:
        The model, and mlx-lm's tokenizer wrapper.

    Raises:
        UsageError: If a file is missing or damaged, the architecture is unknown, or the model is
            quantised.
    """
    config = read_config(folder)
    tokenizer = load_tokenizer(folder)
    _refuse_quantised(folder, config)
    if "model_file" in config:
        raise UsageError(f"{folder}: its config.json names code to run; that is never done here")
    _check_weight_files(folder)
    from mlx_lm.utils import load_model

    try:
        model, _ = load_model(folder, lazy=True, model_config=normalised(config))
        model.update(tree_map(_as_float32, model.parameters()))
        mx.eval(model.parameters())
    except Exception as error:  # whatever mlx-lm meets in a folder, the folder is at fault
        raise UsageError(f"{folder}: cannot be loaded: {_first_line(error)}") from None
    return model, tokenizer


def load_tokenizer(folder: Path) -> Any:
    """mlx-lm's wrapper of a folder's tokenizer, which knows all ids the model ends with.

    Raises:
        UsageError: If there is none or it can't be loaded.
    """
    eos_ids = _eos_ids(folder, read_config(folder))
    from mlx_lm.utils import load_tokenizer as load

    try:
        return load(folder, eos_token_ids=eos_ids)
    except Exception as error:  # the same for transformers
        raise UsageError(f"{folder}: no usable tokenizer: {_first_line(error)}") from None


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        UsageError: If it is missing or not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder}: no config.json; a model folder holds one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON: {_first_line(error)}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path}: expected a JSON object")
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
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            extra["rope_local_base_freq"] = local["rope_theta"]
        return extra
    extra = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    if rope.get("rope_type", "default") != "default":
        extra["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    return extra


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


def _check_weight_files(folder: Path) -> None:
    """Let the strict parser see each file first: MLX accepts malformed ones."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UsageError(f"{folder}: no model*.safetensors in it")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{file}: not a valid safetensors file: {_first_line(error)}"
            ) from None


def _eos_ids(folder: Path, config: dict[str, Any]) -> Any:
    generation = folder / "generation_config.json"
    if generation.exists():
        try:
            return json.loads(generation.read_text(encoding="utf-8"))["eos_token_id"]
        except (ValueError, KeyError, TypeError):
            pass
    return config.get("eos_token_id")


def _as_float32(value: mx.array) -> mx.array:
    return value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
