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
}
COURSE = "course"


def build(name: str, **sizes: int) -> nn.Module:
    """A model of an architecture, its weights not computed yet.

    Args:
        name: A key of `EXTRA`, or `COURSE` for the course's TransformerLM.
        sizes: Entries of the config that differ from those here; not for `COURSE`.
    """
    mx.random.seed(0)
    if name == COURSE:
        course: nn.Module = CourseModel(CourseArgs(VOCAB, 32, 2, 4, 64, 64))
        course.head_bias = mx.random.normal((VOCAB,))
        return course
    module = import_module(f"mlx_lm.models.{name}")
    config = {"model_type": name, **_SIZES, **EXTRA[name], **sizes}
    config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    return model


def make(name: str, **sizes: int) -> nn.Module:
    """`build`, with weights computed."""
    model = build(name, **sizes)
    mx.eval(model.parameters())
    return model
