"""Where mlx-lm's models read a config or a checkpoint differently from transformers.

Each difference changes what a model computes, or keeps it from loading, and none is reported by
either library. They were found by comparing logits (see docs/conversion.md).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError
from mlx_dpo.models.course import MODEL_TYPE, CourseArgs, CourseModel
from mlx_dpo.models.parameters import same_bits

Activation = Callable[[mx.array], mx.array]
Correction = Callable[[nn.Module], None]

_EXACT = ("gelu", "gelu_python")
_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate")

# The config's key of the activation, transformers' default, and what mlx-lm always computes.
_ACTIVATIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    **{
        name: ("hidden_act", "silu", ("silu", "swish"))
        for name in ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3")
    },
    "gemma": ("hidden_act", "gelu_pytorch_tanh", _EXACT),
    "gemma2": ("hidden_activation", "gelu_pytorch_tanh", _TANH),
    "gemma3_text": ("hidden_activation", "gelu_pytorch_tanh", _TANH),
    "phi": ("hidden_act", "gelu_new", _TANH),
    "gpt2": ("activation_function", "gelu_new", _TANH),
    "gpt_neox": ("hidden_act", "gelu", _TANH),
    "starcoder2": ("hidden_act", "gelu_pytorch_tanh", _EXACT),
}

# mlx-lm's name of a setting and transformers 5's.
_RENAMED = {
    "gpt2": {"n_ctx": "n_positions"},
    "gpt_neox": {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    "qwen3_moe": {"num_experts": "num_local_experts"},
}

_BASES = ("rope_theta", "rotary_emb_base", "rope_local_base_freq")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZES = (
    *("hidden_size", "n_embd", "d_model", "dim", "vocab_size", "head_dim", "n_inner", "d_ff"),
    *("intermediate_size", "ffn_hidden_size", "moe_intermediate_size", "kv_lora_rank"),
    *("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads"),
    *("num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts", "rotary_dim"),
)

_MOST_LAYERS, _LARGEST_SIZE = 1000, 10_000_000  # of a model without its weights

# Architectures that have a sliding window in transformers and none in mlx-lm.
_WINDOWLESS = ("mistral", "qwen2", "qwen3", "gemma2", "phi3", "smollm3", "starcoder2")

# Whether the output layer is the table of embeddings. Where config.json does not say, mlx-lm and
# transformers fall back to different defaults; a model whose own output layer is replaced by its
# embeddings loads without a warning and is another model.
TIED = "tie_word_embeddings"
HEADS = ("lm_head.weight", "embed_out.weight")  # output layers
_EMBEDDING = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")


def for_mlx(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json with the entries mlx-lm needs to read it as transformers does, added.

    Raises:
        UsageError: If mlx-lm can't compute what the config says.
    """
    kind = config.get("model_type")
    extra = normalised(config)
    merged = {**config, **extra}
    for ours, theirs in _RENAMED.get(str(kind), {}).items():
        if ours not in config and theirs in merged:
            extra[ours] = merged[theirs]
    if kind == "gemma3_text" and "sliding_window_pattern" not in config:
        extra |= _window_pattern(config.get("layer_types"))
    if kind == "phi3" and isinstance(extra.get("rope_scaling"), dict):
        scaling = extra["rope_scaling"]
        extra["rope_scaling"] = {"type": scaling.get("rope_type"), **scaling}
    _check_bases(config | extra)
    return config | extra


def _check_bases(config: dict[str, Any]) -> None:
    """Refuse a base of the rotary positions that is no number: MLX meets it in the first step."""
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in _BASES:
            value = holder.get(key, 1)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise UsageError(
                    f"config.json: {key} is {value!r:.60}; expected a number above 0: take it from "
                    "the original model"
                )


def normalised(config: dict[str, Any]) -> dict[str, Any]:
    """Entries of a config in the spelling mlx-lm reads, to merge into it.

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


def model_classes(config: dict[str, Any]) -> tuple[Any, Any]:
    """The model class of an architecture and its arguments' class.

    They are mlx-lm's own or the course's, or the model's is a subclass of mlx-lm's that computes
    the activation the config names and accepts the names `save_pretrained` writes.

    Raises:
        UsageError: If mlx-lm has no such architecture, or computes another activation.
    """
    from mlx_lm.utils import _get_classes  # the default of load_model's public parameter

    kind = config.get("model_type")
    if not isinstance(kind, str) or not re.fullmatch(r"[A-Za-z]\w*(-\w+)*", kind):
        raise UsageError(
            f"config.json: expected the name of an architecture, model_type is {kind!r}"
        )
    if kind == MODEL_TYPE:
        return CourseModel, CourseArgs
    try:
        model, arguments = _get_classes(config)
    except (ValueError, AttributeError, SystemExit):  # one module of mlx-lm exits the program
        raise UsageError(f"config.json: mlx-lm has no architecture {kind!r}") from None
    corrections: list[Correction] = []
    activation = _other_activation(kind, config)
    if activation is not None:
        corrections.append(partial(_set_activation, activation=activation))
    if kind == "gemma3_text":
        corrections.append(_scale_embeddings_exactly)
    if kind == "gpt2" or corrections:
        model = _corrected(model, corrections, "transformer." if kind == "gpt2" else "")
    return model, arguments


def check_sizes(config: dict[str, Any], shapes: Sequence[Sequence[int]]) -> None:
    """Refuse a config with sizes that the weights do not have, before a model is built from it.

    Args:
        config: A config.json.
        shapes: Of the tensors.

    Raises:
        UsageError: If a layer count is above the number of tensors, or a size above the largest.
    """
    largest = max((size for shape in shapes for size in shape), default=0)
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in _LAYERS + _SIZES:
            size = holder.get(key)
            if not isinstance(size, int | float):
                continue
            if key in _LAYERS and size > len(shapes):
                raise UsageError(
                    f"config.json: {key} is {size}, and the weights are {len(shapes)} tensors"
                )
            if not 0 <= size <= max(largest, len(shapes)):
                raise UsageError(
                    f"config.json: {key} is {size}, and no tensor of the weights has a side above "
                    f"{largest}"
                )


def check_sizes_alone(config: dict[str, Any]) -> None:
    """Refuse sizes that no model has, where there are no weights to compare them with.

    Raises:
        UsageError: If a layer count or a size is above `_MOST_LAYERS` or `_LARGEST_SIZE`.
    """
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in _LAYERS + _SIZES:
            most = _MOST_LAYERS if key in _LAYERS else _LARGEST_SIZE
            if isinstance(size := holder.get(key), int | float) and not 0 <= size <= most:
                raise UsageError(f"config.json: {key} is {size}; at most {most} is looked at")


def window_note(config: dict[str, Any]) -> str | None:
    """A sentence where mlx-lm leaves out the sliding window a config asks for."""
    window = config.get("sliding_window")
    kind = config.get("model_type")
    if not window or kind not in _WINDOWLESS:
        return None
    if "use_sliding_window" in config and not config["use_sliding_window"]:
        return None
    return f"mlx-lm computes {kind} without its sliding window: exact up to {window} tokens"


def is_head(name: str) -> bool:
    """Whether a tensor is an output layer, by its name."""
    return name.endswith(HEADS)


def is_embedding(name: str) -> bool:
    """Whether a tensor is the table of token embeddings, by its name."""
    return _EMBEDDING.search(name) is not None


def twin(name: str, arrays: Mapping[str, mx.array]) -> str | None:
    """Name of the embeddings that a tensor repeats bit by bit, if there are any."""
    others = [other for other in arrays if is_embedding(other) and other != name]
    return next((other for other in others if same_bits(arrays[name], arrays[other])), None)


def tied_entry(config: dict[str, Any], arrays: Mapping[str, mx.array]) -> dict[str, Any]:
    """Whether the weights are tied, where the config does not say; to merge into the config."""
    if TIED in config:
        return {}
    return {TIED: all(twin(name, arrays) for name in arrays if is_head(name))}


def tied_entry_of_folder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`tied_entry` for a folder, whose weights must not contradict its config.

    Raises:
        UsageError: If the config says tied, and an output layer differs from the embeddings.
    """
    arrays: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        arrays |= cast("dict[str, mx.array]", mx.load(str(file)))  # lazy: few are read
    for name in arrays:
        if config.get(TIED) and is_head(name) and twin(name, arrays) is None:
            raise UsageError(
                f"{TIED} is true, and {name} differs from the embeddings: it would be dropped"
            )
    return tied_entry(config, arrays)


def _window_pattern(layer_types: Any) -> dict[str, int]:
    """n, where every n-th layer has full attention; transformers 5 writes a list instead."""
    if not isinstance(layer_types, list):
        return {}
    is_full = [kind == "full_attention" for kind in layer_types]
    for every in range(1, len(is_full) + 1):
        if is_full == [(i + 1) % every == 0 for i in range(len(is_full))]:
            return {"sliding_window_pattern": every}
    raise UsageError(
        "config.json: mlx-lm computes only layer_types where every n-th layer is full_attention, "
        "the last included"
    )


def _other_activation(kind: str, config: dict[str, Any]) -> Activation | None:
    """The activation a config names, where mlx-lm would compute another."""
    if kind not in _ACTIVATIONS:
        return None
    key, default, computed = _ACTIVATIONS[kind]
    named = config.get(key) or default
    if named in computed:
        return None
    if named in _EXACT and computed is _TANH:
        return nn.gelu
    if named in _TANH and computed is _EXACT:
        return nn.gelu_approx
    raise UsageError(
        f"config.json: {key} is {named!r}, and mlx-lm computes {computed[0]!r} for {kind}"
    )


def _corrected(model: type[nn.Module], corrections: list[Correction], prefix: str) -> type:
    class Corrected(model):  # type: ignore[misc, valid-type]
        def __init__(self, arguments: Any) -> None:
            super().__init__(arguments)
            for correct in corrections:
                correct(self)

        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
            return super().sanitize(weights) if hasattr(super(), "sanitize") else weights

    Corrected.__name__ = Corrected.__qualname__ = model.__name__
    Corrected.__module__ = model.__module__
    return Corrected


def _set_activation(model: nn.Module, activation: Activation) -> None:
    """Make each MLP of a model compute `activation` between its layers."""
    classes: dict[type, type] = {}
    for module in model.modules():
        if type(module).__name__ == "MLP":
            classes.setdefault(type(module), _mlp_class(type(module), activation))
            module.__class__ = classes[type(module)]


def _mlp_class(base: type, activation: Activation) -> type:
    class MLP(base):  # type: ignore[misc]
        def __call__(self, x: mx.array) -> mx.array:
            if "gate_proj" in self:
                y: mx.array = self.down_proj(activation(self.gate_proj(x)) * self.up_proj(x))
            else:
                inner, outer = self.children().values()
                y = outer(activation(inner(x)))
            return y

    return MLP


def _scale_embeddings_exactly(model: Any) -> None:
    """Undo the rounding of Gemma 3's embedding scale to bfloat16, unless that is the dtype."""
    scale = model.args.hidden_size**0.5
    ratio = scale / mx.array(scale, mx.bfloat16).astype(mx.float32).item()
    embedding = model.model.embed_tokens

    class Embedding(type(embedding)):  # type: ignore[misc]
        def __call__(self, x: mx.array) -> mx.array:
            value: mx.array = super().__call__(x)
            return value if value.dtype == mx.bfloat16 else value * ratio

    embedding.__class__ = Embedding
