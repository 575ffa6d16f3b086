"""Where mlx-lm's models read a config or a checkpoint differently from transformers.

Each difference changes what a model computes, or keeps it from loading, and none is reported by
either library. They were found by comparing logits (see docs/conversion.md).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from mlx_dpo.errors import UsageError
from mlx_dpo.models.corrections import corrected, corrections_of, slides_everywhere
from mlx_dpo.models.course import MODEL_TYPE, CourseArgs, CourseModel
from mlx_dpo.models.parameters import same_bits
from mlx_dpo.models.rotary import rope_type, scaling_of
from mlx_dpo.models.verified import (
    DERIVED,
    ROTARY,
    check,
    language_config,
    row_of,
    width_of_head,
)

# mlx-lm's name of a setting and transformers 5's.
RENAMED = {
    "exaone": {"num_layers": "num_hidden_layers", "layer_norm_epsilon": "rms_norm_eps"},
    "gpt2": {"n_ctx": "n_positions"},
    "gpt_neox": {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    "lfm2": {"block_dim": "hidden_size"},
    "mellum": {"num_experts": "num_local_experts"},
    "qwen3_moe": {"num_experts": "num_local_experts"},
    "qwen3_vl_moe": {"num_experts": "num_local_experts"},
}

# Settings that mlx-lm asks for and transformers 5 has no more, as it computes them.
_FIXED: dict[str, dict[str, Any]] = {
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
    "ernie4_5_moe": {"moe_use_aux_free": True},
    "exaone4": {"rope_scaling": None},
    "glm4_moe": {"rope_scaling": None},
    "qwen3_vl_moe": {"norm_topk_prob": True},
    "solar_open": {"intermediate_size": 0, "first_k_dense_replace": 0, "partial_rotary_factor": 1},
}

# Architectures of which mlx-lm asks for the size of a head; without, it is the width by the heads.
_HEAD_DIM = ("exaone4", "glm4_moe", "qwen3_moe")

# Architectures whose first layers have no experts, which transformers 5 writes as a list.
_DENSE_FIRST = ("deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")

# What transformers 5 calls kinds of layers that mlx-lm knows by another name.
_LAYER_TYPES = {
    "granitemoehybrid": {"linear_attention": "mamba", "full_attention": "attention"},
}

# Multimodal architectures of which mlx-lm reads the size of the vocabulary beside text_config.
_VOCABULARY_OUTSIDE = ("gemma3", "gemma4", "gemma4_unified")

# The language model inside a multimodal one.
_INSIDE = {"gemma3": "gemma3_text", "qwen3_vl_moe": "qwen3_vl_moe"}

_FULL = "full_attention"
_LENGTH, _ORIGINAL = "max_position_embeddings", "original_max_position_embeddings"
_RELATIVE = ("llama3", "yarn", "longrope")  # to an original length, by default the model's
_BASES = ("rope_theta", "rotary_emb_base", "rope_local_base_freq")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_SIZES = (
    *("hidden_size", "n_embd", "d_model", "dim", "vocab_size", "head_dim", "n_inner", "d_ff"),
    *("intermediate_size", "ffn_hidden_size", "moe_intermediate_size", "kv_lora_rank"),
    *("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_kv_heads"),
    *("num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts", "rotary_dim"),
)

_MOST_LAYERS, _LARGEST_SIZE = 1000, 10_000_000  # of a model without its weights

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
    check(config)
    config = _plain(config)  # some of mlx-lm's models write into what they are given
    language_config(config).update(_left_out(config))
    merged = {**config, **normalised(config)}
    text = merged.get("text_config")
    if isinstance(text, dict):
        text = {**text, **_respelled(language_kind(config), text)}
        if TIED in config:
            text[TIED] = config[TIED]
        if config.get("model_type") in _VOCABULARY_OUTSIDE and "vocab_size" in text:
            merged["vocab_size"] = text["vocab_size"]
        merged["text_config"] = text
    else:
        merged |= _respelled(language_kind(config), merged)
    _check_bases(merged)
    return merged


def _left_out(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers takes for settings that a config leaves out, where mlx-lm would not."""
    row, language, extra = row_of(config) or {}, language_config(config), dict[str, Any]()
    for name, value in row.get("absent", {}).items():
        if name in language and not (name in DERIVED and language[name] is None):
            continue
        if name != "rope_parameters" or not ROTARY & language.keys():
            extra[name] = value
        elif "rope_theta" in value and "rope_theta" not in scaling_of(language) | language:
            extra["rope_theta"] = value["rope_theta"]
    derived = _derived(language)
    extra |= {name: None for name in DERIVED if name in language and language[name] is None}
    return {k: derived.get(k) if v is None and k in DERIVED else v for k, v in extra.items()}


def _derived(config: dict[str, Any]) -> dict[str, int]:
    """Sizes that follow from the width and the number of heads, where both are there."""
    width = width_of_head(config)
    if width is None:
        return {}
    return {"num_key_value_heads": config["num_attention_heads"], "head_dim": width}


def _plain(value: Any) -> Any:
    """JSON's content with transformers' ``{"__float__": "Infinity"}`` as numbers."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity"):
            return float(value["__float__"])
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def language_kind(config: dict[str, Any]) -> str:
    """The architecture of the language model, as mlx-lm names it."""
    kind = str(config.get("model_type"))
    text = config.get("text_config")
    if not isinstance(text, dict):
        return kind
    return _INSIDE.get(kind) or str(text.get("model_type"))


def _respelled(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """What has to be added to a language model's config."""
    extra = {key: value for key, value in _FIXED.get(kind, {}).items() if key not in config}
    for ours, theirs in RENAMED.get(kind, {}).items():
        if ours in config and theirs in config and config[ours] != config[theirs]:
            raise UsageError(
                f"config.json: {ours} is {config[ours]} and {theirs} is {config[theirs]}, and both "
                "mean the same; take out the wrong one"
            )
        if theirs in config:
            extra[ours] = config[theirs]
    if kind in _HEAD_DIM and config.get("head_dim") is None:
        extra |= {key: value for key, value in _derived(config).items() if key == "head_dim"}
    if kind == "granitemoehybrid" and config.get("position_embedding_type") is None:
        extra["position_embedding_type"] = "nope"
    extra |= _layers(kind, config)
    rope = scaling_of(config)
    scaling = rope_type(rope, kind)
    if scaling != "default":
        is_relative = scaling in _RELATIVE and _LENGTH in config
        original = {_ORIGINAL: config[_LENGTH]} if is_relative else {}
        given = {key: value for key, value in rope.items() if value is not None}
        extra["rope_scaling"] = {**original, **given, "type": scaling, "rope_type": scaling}
    elif isinstance(config.get("rope_scaling"), dict):
        extra["rope_scaling"] = None
    return extra


def _layers(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Kinds of layers under mlx-lm's names."""
    layers, pattern = config.get("layer_types"), config.get("sliding_window_pattern")
    extra: dict[str, Any] = {}
    if kind in ("gemma3_text", "cohere2") and layers is not None:
        extra |= _window_pattern(layers)
    if kind == "exaone4" and isinstance(layers, list):
        extra["sliding_window_pattern"] = "".join("LG"[each == _FULL] for each in layers)
    elif kind == "exaone4" and isinstance(pattern, int) and 0 < pattern <= _MOST_LAYERS:
        extra["sliding_window_pattern"] = "L" * (pattern - 1) + "G"
    if kind in _DENSE_FIRST and isinstance(config.get("mlp_layer_types"), list):
        extra["first_k_dense_replace"] = _num_dense(config["mlp_layer_types"])
    if kind in _LAYER_TYPES and isinstance(layers, list):
        names = _LAYER_TYPES[kind]
        extra["layer_types"] = [names.get(str(each), each) for each in layers]
    if kind == "mistral" and slides_everywhere(config):
        extra["layer_types"] = None  # mlx-lm's llama needs a full one
    return extra


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
    corrections = corrections_of(language_kind(config), language_config(config))
    if kind == "gpt2" or corrections:
        model = corrected(model, corrections, "transformer." if kind == "gpt2" else "")
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


def names_head(name: str) -> bool:
    """Whether a tensor is an output layer, by its name."""
    return name.endswith(HEADS)


def names_embedding(name: str) -> bool:
    """Whether a tensor is the table of token embeddings, by its name."""
    return _EMBEDDING.search(name) is not None


def twin(name: str, arrays: Mapping[str, mx.array]) -> str | None:
    """Name of the embeddings that a tensor repeats bit by bit, if there are any."""
    others = [other for other in arrays if names_embedding(other) and other != name]
    return next((other for other in others if same_bits(arrays[name], arrays[other])), None)


def tied_entry(config: dict[str, Any], arrays: Mapping[str, mx.array]) -> dict[str, Any]:
    """Whether the weights are tied, where the config does not say; to merge into the config."""
    if TIED in config:
        return {}
    return {TIED: all(twin(name, arrays) for name in arrays if names_head(name))}


def tied_entry_of_folder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`tied_entry` for a folder, whose weights must not contradict its config.

    Raises:
        UsageError: If the config says tied, and an output layer differs from the embeddings.
    """
    arrays: dict[str, mx.array] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        arrays |= cast("dict[str, mx.array]", mx.load(str(file)))  # lazy: few are read
    for name in arrays:
        if config.get(TIED) and names_head(name) and twin(name, arrays) is None:
            raise UsageError(
                f"{TIED} is true, and {name} differs from the embeddings: it would be dropped"
            )
    return tied_entry(config, arrays)


def _window_pattern(layer_types: Any) -> dict[str, int]:
    """n, where every n-th layer has full attention; transformers 5 writes a list instead."""
    if not isinstance(layer_types, list):
        return {}
    is_full = [kind == _FULL for kind in layer_types]
    for every in range(1, len(is_full) + 1):
        if is_full == [(i + 1) % every == 0 for i in range(len(is_full))]:
            return {"sliding_window_pattern": every}
    raise UsageError(
        "config.json: mlx-lm computes only layer_types where every n-th layer is full_attention, "
        "the last included"
    )


def _num_dense(layer_types: list[Any]) -> int:
    """Layers without experts, which have to be the first ones."""
    number = layer_types.count("dense")
    if layer_types[:number] != ["dense"] * number:
        raise UsageError(
            "config.json: mlx-lm computes only mlp_layer_types where the dense layers are the first"
        )
    return number
