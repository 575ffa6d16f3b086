"""Settings of config.json: verified against transformers, refused, or named as not verified."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.models import verified
from mlx_dpo.models.dialects import for_mlx, model_classes
from mlx_dpo.models.folder import check_ids, load_model
from tests.convert.conftest import GOLDEN
from tests.convert.test_corrected import STORED, folder_of

_SAVED = {
    "architectures": ["XForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": None,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "use_cache": True,
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
}
_PACKED = {"group_size": 64, "bits": 4, "mode": "affine"}
_LLAMA = {
    **_SAVED,
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
_LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
_OLMO2 = {**_LLAMA, "model_type": "olmo2"}
del _OLMO2["mlp_bias"], _OLMO2["pretraining_tp"]
_QWEN = {
    **_SAVED,
    "model_type": "qwen2",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "max_window_layers": 28,
    "sliding_window": 131072,
    "use_sliding_window": False,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
_QWEN3 = {**_QWEN, "model_type": "qwen3", "head_dim": 32, "attention_bias": False}
_GEMMA = {
    **_SAVED,
    "model_type": "gemma2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 224,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}
_GEMMA3 = {
    **_SAVED,
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
}
_GEMMA3_INSIDE: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
_PHI3 = {
    **_SAVED,
    "model_type": "phi3",
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "hidden_act": "silu",
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
}
_MISTRAL = {
    **_SAVED,
    "model_type": "mistral",
    "attention_dropout": 0.0,
    "head_dim": 16,
    "hidden_act": "silu",
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
_GLM4 = {
    **_SAVED,
    "model_type": "glm4",
    "attention_bias": True,
    "attention_dropout": 0.0,
    "head_dim": 16,
    "hidden_act": "silu",
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_DEEPSEEK = {
    **_SAVED,
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "kv_lora_rank": 512,
    "moe_intermediate_size": 24,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_experts_per_tok": 6,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
}

KEYS = {
    *("any", "idle", "only", "but", "up_to", "null", "not_null", "absent", "required", "inside"),
    "rope",
}

# In the words of config.json files that are downloaded most.
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama 2": {**_LLAMA, "max_length": 4096},
    "Llama 3.2": {**_LLAMA, "head_dim": 64, "rope_scaling": _LLAMA3},
    "Llama 3.2, 4 bits": {
        **_LLAMA,
        "rope_scaling": _LLAMA3,
        "quantization": _PACKED,
        "quantization_config": _PACKED,
    },
    "SmolLM2": {
        **_LLAMA,
        "is_llama_config": True,
        "rope_interleaved": False,
        "rope_theta": 130000,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    },
    "Qwen2.5": _QWEN,
    "Qwen2.5 with YaRN": {**_QWEN, "rope_scaling": _YARN},
    "Qwen3": _QWEN3,
    "Gemma 2": _GEMMA,
    "Gemma 3 1B": _GEMMA3,
    "Gemma 3 4B": _GEMMA3_INSIDE,
    "Phi-3 mini 4k": _PHI3,
    "Mistral v0.3": _MISTRAL,
    "OLMo 2": _OLMO2,
    "GLM-4-0414": _GLM4,
    "Moonlight": _DEEPSEEK,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_families_used_most_are_verified_whole(name: str) -> None:
    config = PUBLISHED[name]
    verified.check(config)
    is_known, text = verified.known(config)
    assert is_known, text
    assert "every setting of config.json verified against transformers 5.24" in text


@pytest.mark.parametrize("config", [each["config"] for each in (GOLDEN | STORED).values()])
def test_what_transformers_saves_is_verified_as_it_is_and_as_it_is_written_for_mlx(
    config: dict[str, Any],
) -> None:
    for each in (config, for_mlx(config)):
        is_known, text = verified.known(each)
        assert is_known, text


def test_forty_architectures_are_in_the_table() -> None:
    rows = verified.table()["architectures"]
    assert sum("wrong" not in row for row in rows.values()) >= 40


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("Llama 3.2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("Llama 3.2", {"rope_traditional": True}, "rope_traditional is true, with which mlx-lm's"),
        ("Llama 3.2", {"rope_scaling": {"type": "warped", "factor": 2}}, "rope_type is 'warped'"),
        ("Gemma 2", {"attention_bias": True}, "attention_bias is true"),
        ("Gemma 2", {"final_logit_softcapping": None}, "final_logit_softcapping is null"),
        ("Gemma 3 1B", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("Gemma 3 1B", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("Phi-3 mini 4k", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ("GLM-4-0414", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ("Moonlight", {"rope_scaling": {"type": "longrope"}}, "rope_type is 'longrope'"),
        ("Moonlight", {"topk_method": "greedy"}, 'topk_method is "greedy"'),
        ("Moonlight", {"num_experts_per_tok": 1}, "num_experts_per_tok is 1"),
        ("Mistral v0.3", {"attention_bias": True}, "attention_bias is true"),
    ],
)
def test_what_mlx_lm_computes_otherwise_is_refused_in_one_line(
    name: str, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        model_classes(for_mlx({**PUBLISHED[name], **entries}))
    text = str(raised.value)
    assert text.startswith("config.json: ")
    assert message in text
    assert "\n" not in text


def test_a_setting_of_a_model_inside_another_is_refused_too() -> None:
    text = {**_GEMMA3_INSIDE["text_config"], "attention_bias": True}
    with pytest.raises(UsageError, match="attention_bias is true, with which mlx-lm's gemma3"):
        for_mlx({**_GEMMA3_INSIDE, "text_config": text})


def test_settings_nobody_knows_are_named_and_not_refused() -> None:
    config = {**_LLAMA, "attention_sinks": 4, "rope_scaling": {**_LLAMA3, "warp": 2}}
    for_mlx(config)
    text = verified.statement(config, "my/model")
    assert text == (
        "forward pass: llama, verified against transformers 5.24, but NOT for attention_sinks, "
        "warp of llama3 positions in config.json: mlx_dpo doctor --model my/model compares it "
        "with transformers"
    )


def test_an_architecture_nobody_has_compared_is_said_to_be_so() -> None:
    assert verified.statement({"model_type": "internlm2"}, "m") == (
        "forward pass: NOT verified for model_type internlm2: mlx_dpo doctor --model m compares it "
        "with transformers"
    )


def test_another_version_of_mlx_lm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "version", lambda name: "9.9.9")
    made_with = verified.table()["versions"]["mlx-lm"]
    assert f"with mlx-lm {made_with}, and 9.9.9 is installed" in verified.statement(_LLAMA, "m")


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (_PHI3, 2047),
        (_GEMMA, 4096),
        (_QWEN, None),
        ({**_QWEN, "use_sliding_window": True}, 131072),
        (_MISTRAL, None),
        ({**_MISTRAL, "sliding_window": 128}, None),
        (_GEMMA3, None),
    ],
)
def test_a_window_that_mlx_lm_leaves_out_is_a_limit(
    config: dict[str, Any], limit: int | None
) -> None:
    assert verified.exact_up_to(config) == limit
    assert (f", up to {limit} tokens" in verified.statement(config, "m")) == (limit is not None)


def test_rows_beyond_a_window_that_mlx_lm_leaves_out_are_refused(tmp_path: Path) -> None:
    folder = folder_of("phi3:longrope", tmp_path / "model", sliding_window=16)
    model = load_model(folder)
    check_ids(model, folder, largest_id=9, longest=16)
    with pytest.raises(UsageError, match="pass --max-length 16"):
        check_ids(model, folder, largest_id=9, longest=17)


def test_settings_left_out_are_those_of_transformers() -> None:
    config = {key: value for key, value in _GEMMA.items() if key not in ("head_dim", "rope_theta")}
    config["query_pre_attn_scalar"] = 224
    filled = for_mlx(config)
    assert filled["head_dim"] == 256
    assert for_mlx({**config, "head_dim": 64})["head_dim"] == 64


def test_the_table_is_what_the_tool_writes() -> None:
    """Its form, so that a row edited by hand shows."""
    file = Path(verified.__file__).parent / "verified.json"
    rows = json.loads(file.read_text())["architectures"]
    assert list(rows) == sorted(rows)
    for row in rows.values():
        assert "wrong" in row or row.keys() <= KEYS
