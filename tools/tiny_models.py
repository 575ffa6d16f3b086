"""Tiny random models of every architecture that mlx-lm and transformers share; needs torch.

A configuration class's own defaults with small sizes, so that every setting has the value it has
by default, and weights that follow from a tensor's name. Sizes are chosen so that settings show:
fewer key heads than query heads, heads of another size than width / heads, windows shorter than
the longer of two texts.
"""

from copy import deepcopy
from typing import Any

import numpy as np

from tests.convert.tiny import made_up

VOCAB = 320
SHORT, LONG = 12, 80  # tokens; windows and original lengths lie between
WINDOW = 32
WIDE = 128  # a window that shows in neither

_IDS = {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": 4}
SIZES: dict[str, Any] = {
    **{"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8},
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    **dict.fromkeys(("max_position_embeddings", "model_max_length", "max_seq_len"), 256),
    **dict.fromkeys(("num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **{
        "n_routed_experts": 8,
        "moe_num_experts": 4,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 20,
    },
    **{"n_group": 2, "num_expert_group": 2, "topk_group": 1, "moe_num_shared_experts": 1},
    **{"n_shared_experts": 1, "num_shared_experts": 1, "first_k_dense_replace": 1},
    **{"num_dense_layers": 1, "intermediate_size_mlp": 40, "shared_intermediate_size": 24},
    **{"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "v_head_dim": 12},
    **{"qk_nope_head_dim": 8, "index_topk": WINDOW, "index_head_dim": 16, "index_n_heads": 2},
    **{"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "rotary_dim": 4},
    **{"d_model": 32, "n_heads": 4, "n_layers": 4, "lru_width": 32, "num_layers": 2},
    **{"ffn_hidden_size": 48, "expert_ffn_hidden_size": 24, "zero_expert_num": 2},
    **{"query_pre_attn_scalar": 24, "sliding_window": WINDOW, "attention_window_size": WINDOW},
    **{"attention_chunk_size": WINDOW, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    **{"linear_head_dim": 8, "linear_num_heads": 4, "layer_group_size": 2},
    **{"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
    **{"mamba_chunk_size": 16, "mamba_dt_rank": 4, "mamba_num_heads": 4, "mamba_head_dim": 8},
    **{"ssm_state_size": 8, "n_groups": 1, "state_size": 8, "time_step_rank": 4, "num_heads": 8},
    **{"chunk_size": 16, "dim_model_base": 16, "num_nextn_predict_layers": 0},
}
_VISION = {
    **{"hidden_size": 32, "out_hidden_size": 32, "depth": 1, "num_heads": 2, "num_channels": 3},
    **{"intermediate_size": 48, "patch_size": 14, "image_size": 28, "num_hidden_layers": 1},
    **{"num_attention_heads": 2},
}
_TOKENS = (
    *("image_token_index", "image_token_id", "video_token_id", "vision_start_token_id"),
    *("vision_end_token_id", "boi_token_index", "eoi_token_index", "audio_token_id"),
)
_KEPT_NONE = ("n_inner", "sliding_window", "rotary_dim")  # not set where None by default

_THETA = 50_000.0
_YARN = {
    **{"rope_type": "yarn", "rope_theta": _THETA, "factor": 4.0, "mscale": 0.7},
    **{"mscale_all_dim": 0.7, "original_max_position_embeddings": 64},
}
_LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": _THETA, "short_factor": [1.0, 1.1, 1.2, 1.3]},
    **{"long_factor": [1.0, 2.0, 3.0, 4.0], "original_max_position_embeddings": 64},
}
_MROPE = {"rope_type": "default", "rope_theta": _THETA, "mrope_section": [1, 1, 2]}
_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
_WIDTH_BY_HEADS = {"head_dim": None}
_MIXED = {"layer_types": ["conv", "full_attention"] * 2}

# What an architecture needs besides; None leaves a size at its default. Nested configs take it for
# their language model.
EXTRA: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("afmoe", "apertus", "ernie4_5", "exaone4", "falcon_mamba", "gemma")},
    **{name: {} for name in ("gemma4_text", "glm", "glm4", "glm4_moe", "gpt2", "gptj", "granite")},
    **{name: {} for name in ("granitemoe", "hunyuan_v1_dense", "iquestcoder", "laguna", "llama")},
    **{name: {} for name in ("llava", "mamba", "mellum", "mistral", "mistral3", "nemotron")},
    **{name: {} for name in ("olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe")},
    **{name: {} for name in ("qwen3", "qwen3_vl", "qwen3_5", "qwen3_moe", "qwen3_next")},
    **{name: {} for name in ("seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2")},
    **{name: {} for name in ("ernie4_5_moe",)},
    "cohere": {},
    "cohere2": {"hidden_size": 64, "head_dim": None},
    "deepseek_v2": {**_LATENT, "rope_parameters": _YARN, "topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    "deepseek_v32": {**_LATENT, "index_topk": WIDE},
    "dots1": {"n_group": 1},
    "exaone": _WIDTH_BY_HEADS,
    "gemma2": {"sliding_window": WIDE},
    "gemma3": {"num_hidden_layers": 6},
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma4": {},
    "glm4_moe_lite": _LATENT,
    "gpt_bigcode": {"n_inner": 128},
    "gpt_neox": {"intermediate_size": 128},
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "helium": {"head_dim": 8},
    "internlm3": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1},
    "lfm2": _MIXED,
    "lfm2_moe": _MIXED,
    "minicpm3": {
        **_LATENT,
        "v_head_dim": 8,
        "rope_parameters": _LONGROPE,
        "tie_word_embeddings": False,
    },
    "ministral3": {"rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.1}},
    "mixtral": _WIDTH_BY_HEADS,
    "phimoe": {**_WIDTH_BY_HEADS, "attention_bias": True, "lm_head_bias": True},
    "qwen2_5_vl": {"rope_parameters": _MROPE},
    "recurrent_gemma": {"num_key_value_heads": 1, "head_dim": 8},
}


def tiny_config(kind: str) -> Any:
    """The configuration of an architecture's tiny model, as transformers makes it."""
    from transformers import CONFIG_MAPPING, AutoConfig

    defaults = CONFIG_MAPPING[kind]().to_dict()
    text, vision = defaults.get("text_config"), defaults.get("vision_config")
    if not isinstance(text, dict):
        return AutoConfig.for_model(kind, **_small(defaults, kind))
    settings: dict[str, Any] = {"text_config": _small(text, kind)}
    if text.get("model_type"):
        settings["text_config"]["model_type"] = text["model_type"]
    if isinstance(vision, dict):
        small = {key: value for key, value in _VISION.items() if key in vision}
        settings["vision_config"] = small | {"model_type": vision["model_type"]}
    for number, name in enumerate(name for name in _TOKENS if name in defaults):
        settings[name] = VOCAB - 1 - number  # in no text
    return AutoConfig.for_model(kind, **settings)


def _small(defaults: dict[str, Any], kind: str) -> dict[str, Any]:
    settings = {
        key: value
        for key, value in (SIZES | _IDS).items()
        if key in defaults and not (defaults[key] is None and key in _KEPT_NONE)
    }
    rope = defaults.get("rope_parameters")
    if isinstance(rope, dict) and "rope_type" in rope:
        settings["rope_parameters"] = {**rope, "rope_theta": _THETA}
        if "original_max_position_embeddings" in rope:
            settings["rope_parameters"]["original_max_position_embeddings"] = 64
    settings |= deepcopy(EXTRA[kind])
    return {k: v for k, v in settings.items() if v is not None or k not in EXTRA[kind]}


def tiny_model(config: Any) -> Any:
    """A model of a configuration, in evaluation mode, its weights and biases made up."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    is_whole = getattr(config, "vision_config", None) is not None
    auto = AutoModelForImageTextToText if is_whole else AutoModelForCausalLM
    model = auto.from_config(config, attn_implementation="eager").eval().float()
    tensors = dict(model.named_parameters())
    tensors |= {name: value for name, value in model.named_buffers() if "correction_bias" in name}
    with torch.no_grad():
        for name, value in tensors.items():
            numbers = made_up(name, tuple(value.shape)) if value.ndim else np.float32(0.3)
            if name.endswith(("A_log", ".dt_bias")):
                numbers = np.abs(numbers)
            value.copy_(torch.from_numpy(np.asarray(numbers)))
    return model
