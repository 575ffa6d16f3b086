"""Small models of many architectures, random weights, the same every time."""

from importlib import import_module
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.course import CourseArgs, CourseModel

VOCAB = 64

_SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": VOCAB},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
    **{"rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5, "rope_theta": 10000.0},
}
_GPT2 = {"n_ctx": 128, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128}
_MAMBA = {"state_size": 4, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True}
_GATED_DELTA: dict[str, Any] = {
    **{"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8},
    **{"linear_value_head_dim": 8, "linear_conv_kernel_dim": 4, "full_attention_interval": 2},
}
_MAMBA2: dict[str, Any] = {
    **{"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_d_conv": 4},
    **{"mamba_n_groups": 1, "mamba_chunk_size": 8, "mamba_conv_bias": True},
}
_PATTERNS = {"layer_types", "activation_sparsity_pattern"}  # an entry for each layer
# Of both kinds a layer with keys of its own, and then some without.
_ALTERNATING = ["sliding_attention", "full_attention"]
_GEMMA3N: dict[str, Any] = {
    **{"model_type": "gemma3n", "head_dim": 8, "num_hidden_layers": 3, "layer_types": _ALTERNATING},
    **{"num_kv_shared_layers": 1, "vocab_size_per_layer_input": VOCAB, "sliding_window": 6},
    **{"rope_local_base_freq": 100.0, "final_logit_softcapping": 30.0, "laurel_rank": 4},
    **{"activation_sparsity_pattern": [0.5, 0.0], "hidden_size_per_layer_input": 8},
    **{"altup_num_inputs": 2, "altup_coef_clip": 120.0, "altup_correct_scale": True},
    "altup_active_idx": 0,
}
_LLAMA4: dict[str, Any] = {
    **{"model_type": "llama4_text", "num_hidden_layers": 4, "head_dim": 8, "use_qk_norm": True},
    **{"attention_chunk_size": 6, "num_local_experts": 2, "num_experts_per_tok": 1},
    **{"interleave_moe_layer_step": 2, "intermediate_size_mlp": 64, "attention_bias": False},
    **{"rope_scaling": None, "attn_temperature_tuning": 4, "floor_scale": 8, "attn_scale": 0.1},
}

# What an architecture needs besides.
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8.0},
    "gemma3_text": {
        "query_pre_attn_scalar": 8.0,
        "sliding_window": 6,
        "sliding_window_pattern": 2,
    },
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "gpt2": {**_GPT2, "layer_norm_epsilon": 1e-5},
    "olmo2": {"tie_word_embeddings": False},
    "granite": {
        "logits_scaling": 4.0,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "cohere": {"logit_scale": 0.25},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {**_MAMBA, "time_step_rank": 4},
    "lfm2": {
        **{"norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "block_dim": 32},
        **{"block_multiple_of": 8, "block_ffn_dim_multiplier": 1.0},
        **{"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]},
    },
    "qwen3_5": {**_GATED_DELTA, "tie_word_embeddings": True},
    "qwen3_next": {
        **_GATED_DELTA,
        **{"num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1},
        **{"shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
        **{"moe_intermediate_size": 16, "partial_rotary_factor": 0.5, "head_dim": 8},
    },
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 32, "tie_word_embeddings": False},
    "granitemoehybrid": {
        **_MAMBA2,
        **{"embedding_multiplier": 2.0, "attention_multiplier": 0.3, "logits_scaling": 4.0},
        **{"residual_multiplier": 0.5, "layer_types": ["mamba", "attention"]},
        **{"attention_bias": False, "mamba_proj_bias": False, "mlp_bias": False},
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 16},
        "position_embedding_type": "nope",
    },
    "gemma3n": {"text_config": _GEMMA3N},
    "gemma4_text": {
        **{"global_head_dim": 16, "vocab_size_per_layer_input": VOCAB, "num_hidden_layers": 3},
        **{"num_kv_shared_layers": 1, "hidden_size_per_layer_input": 8, "sliding_window": 6},
        **{"layer_types": _ALTERNATING, "rms_norm_eps": 1.0},  # small states would be all rounding
    },
    "llama4": {"text_config": _LLAMA4},
    "jamba": {
        **{"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1},
        **{"expert_layer_period": 2, "num_experts": 1, "num_experts_per_tok": 1},
        **{"mamba_d_conv": 4, "mamba_d_state": 4, "mamba_expand": 2},
    },
}
COURSE = "course"


def build(name: str, **sizes: int) -> nn.Module:
    """A model of an architecture, its weights not computed yet.

    Args:
        name: A key of `EXTRA`, or `COURSE` for the course's TransformerLM.
        sizes: Entries of the config that differ from those here; not for `COURSE`. With more
            layers, those of a pattern are repeated.
    """
    mx.random.seed(0)
    if name == COURSE:
        course: nn.Module = CourseModel(CourseArgs(VOCAB, 32, 2, 4, 64, 64))
        course.head_bias = mx.random.normal((VOCAB,))
        return course
    module = import_module(f"mlx_lm.models.{name}")
    config: dict[str, Any] = {"model_type": name, **_SIZES, **EXTRA[name], **sizes}
    config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    if "text_config" in config:
        config["text_config"] = {**_SIZES, **config["text_config"], **sizes}
    for part in (config, config.get("text_config", {})):
        for key in _PATTERNS & part.keys():
            part[key] = (part[key] * part["num_hidden_layers"])[: part["num_hidden_layers"]]
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    return model


def make(name: str, **sizes: int) -> nn.Module:
    """`build`, with weights computed."""
    model = build(name, **sizes)
    mx.eval(model.parameters())
    return model
