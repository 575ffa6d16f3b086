"""Values to try for the settings of a config.json: see `tools.forward_pass`."""

from collections.abc import Iterator
from typing import Any

from tools.tiny_models import SIZES, WINDOW

ABSENT = "(left out)"

_ACTIVATIONS = (
    *("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu"),
    *("relu", "relu2"),
)
_WORDS = {
    **{key: ["sigmoid", "softmax"] for key in ("scoring_func", "score_func", "score_function")},
    "moe_router_activation_func": ["sigmoid", "softmax"],
    "moe_gate_act": ["softmax", "sigmoid"],
    "topk_method": ["greedy", "group_limited_greedy", "noaux_tc"],
    "position_embedding_type": ["rope", "nope", "absolute"],
}
# Values to try where neighbours of the default would not do.
VALUES: dict[str, list[Any]] = {
    "attention_chunk_size": [16],
    "attention_window_size": [16],
    "attn_logit_softcapping": [1.0, 30.0],
    "clip_qkv": [0.3],
    "conv_L_cache": [4],
    "final_logit_softcapping": [2.0, 30.0],
    "first_k_dense_replace": [0, 2, 3],
    "head_dim": [8, 32],
    "index_topk": [16],
    "intermediate_size": [40],
    "interleave_moe_layer_step": [2],
    "logits_soft_cap": [2.0],
    "mlp_only_layers": [[1]],
    "moe_intermediate_size": [16],
    "moe_k": [1, 3],
    "moe_layer_freq": [1, 2],
    "n_group": [1, 2, 4],
    "n_inner": [40],
    "n_shared_experts": [2],
    "num_dense_layers": [0, 2],
    "num_experts": [1, 6],
    "num_experts_per_tok": [1, 3],
    "num_hidden_layers": [2],
    "num_key_value_heads": [4, 1],
    "num_local_experts": [6],
    "num_shared_experts": [2],
    "q_lora_rank": [24],
    "query_pre_attn_scalar": [16, 100],
    "rotary_dim": [8, 2],
    "sliding_window": [16, 64],
    "time_step_limit": [[0.1, 0.2]],
    "topk_group": [1, 2],
}
# Settings that show only together with others.
TOGETHER: dict[str, dict[str, Any]] = {
    "use_sliding_window": {
        "sliding_window": WINDOW,
        "max_window_layers": 0,
        "layer_types": ABSENT,
    }
}
MAYBE = ("hidden_act", "hidden_activation", "rope_traditional")  # tried on every architecture

ROPES: dict[str, dict[str, list[Any]]] = {
    "default": {},
    "linear": {"factor": [2.0, 3]},
    "dynamic": {"factor": [2.0, 3]},
    "llama3": {
        "factor": [8.0, 3],
        "low_freq_factor": [1.0, 2],
        "high_freq_factor": [4.0, 5],
        "original_max_position_embeddings": [WINDOW, 64, ABSENT],
    },
    "yarn": {
        "factor": [4.0, 3],
        "original_max_position_embeddings": [WINDOW, 64, ABSENT],
        "attention_factor": [ABSENT, 1.3, 1],
        "beta_fast": [ABSENT, 8, 16.0],
        "beta_slow": [ABSENT, 2, 0.5],
        "mscale": [ABSENT, 0.7],
        "mscale_all_dim": [ABSENT, 0.9],
        "truncate": [ABSENT, True, False],
    },
    "longrope": {
        "factor": [ABSENT, 4.0],
        "original_max_position_embeddings": [WINDOW, 64],
        "attention_factor": [ABSENT, 1.3],
        "short_factor": [],
        "long_factor": [],
    },
}


def values_of(name: str, default: Any) -> Iterator[Any]:
    """Values to try for a setting.

    Args:
        name: Of the setting.
        default: Its value by default; None also where it has none.
    """
    if name in VALUES:
        yield from VALUES[name]
    elif name == "layer_types" and default is None:
        yield from _lists(["full_attention"] * 4)
    elif name in _WORDS:
        yield from _WORDS[name]
    elif "act" in name.split("_") or "activation" in name:
        yield from _ACTIVATIONS if isinstance(default, str) else ("gelu", "relu")
    elif default is None:
        yield from (True, False, 1, 2)
    elif isinstance(default, bool):
        yield not default
    elif isinstance(default, int):
        yield from () if name in SIZES else (default + 1, 2 * default + 3)
    elif isinstance(default, float):
        yield from (0.01, 0.1) if "eps" in name and default < 1e-3 else (0.31, 1.7 * default + 0.1)
        yield 1
    elif isinstance(default, list):
        yield from _lists(default)


def _lists(default: list[Any]) -> Iterator[list[Any]]:
    """Other orders of a list, and lists of one of its kinds."""
    if all(isinstance(each, int | str) for each in default):
        yield default[1:] + default[:1]
        yield default[::-1]
        kinds = set(default)
        if kinds <= {"full_attention", "sliding_attention"}:
            kinds |= {"full_attention", "sliding_attention"}
        if kinds <= {0, 1}:
            kinds |= {0, 1}
        for kind in sorted(kinds, key=str):
            yield [kind] * len(default)
            yield [kind, *default[1:]]
