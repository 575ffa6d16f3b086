"""Tiny models of many architectures: their settings, and weights that follow from a tensor's name.

The settings are those that go wrong silently: a rotary base that is no default, fewer key heads
than query heads, biases, embeddings tied and not.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TOKENIZER = Path(__file__).parent.parent / "oracle" / "llama" / "model"
VOCAB = 512  # that of the oracle's tokenizer, which travels with each of them
_ROPE = {"rope_type": "default", "rope_theta": 50_000.0}
_IDS = {"bos_token_id": None, "eos_token_id": 3, "pad_token_id": 4}

_LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_parameters": _ROPE,
    "tie_word_embeddings": False,
    **_IDS,
}
_GEMMA = {**_LLAMA, "head_dim": 16, "tie_word_embeddings": True}
_HALF_ROPE = {**_ROPE, "partial_rotary_factor": 0.5}
_PARALLEL = {k: v for k, v in _LLAMA.items() if k not in ("num_key_value_heads",)}

# The keys name the case; `model_type` is the part before the colon.
CASES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "llama:tied with biases": {
        **_LLAMA,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama:scaled rope": {
        **_LLAMA,
        "rope_parameters": {
            **_ROPE,
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": {**_LLAMA, "sliding_window": None},
    "qwen2": {**_LLAMA, "tie_word_embeddings": True},
    "qwen2:untied": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "gemma": _GEMMA,
    "gemma2": {**_GEMMA, "query_pre_attn_scalar": 16, "sliding_window": 64},
    "gemma3_text": {
        **_GEMMA,
        "query_pre_attn_scalar": 16,
        "sliding_window": 16,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 200_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
        },
    },
    "phi": {**_PARALLEL, "num_key_value_heads": 2, "rope_parameters": _HALF_ROPE},
    "phi3": {**_LLAMA, "original_max_position_embeddings": 128},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        **_IDS,
    },
    "gpt_neox": {**_PARALLEL, "intermediate_size": 128, "rope_parameters": _HALF_ROPE},
    "olmo2": _LLAMA,
    "smollm3": {**_LLAMA, "num_hidden_layers": 4, "no_rope_layer_interval": 4},
    "starcoder2": {**_LLAMA, "tie_word_embeddings": True, "use_bias": True},
}

_YARN = {**_ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LONGROPE = {
    **_ROPE,
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 4.0, 16.0, 60.0],
    "original_max_position_embeddings": 32,
}
_LAYERED = {
    **_GEMMA,
    "query_pre_attn_scalar": 16,
    "sliding_window": 16,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}

# Models that mlx-lm alone computes otherwise, read right here: their texts are longer than windows
# and original lengths, and shorter.
CORRECTED: dict[str, dict[str, Any]] = {
    "phi3:longrope": {
        **_LLAMA,
        "original_max_position_embeddings": 32,
        "rope_parameters": _LONGROPE,
    },
    "llama:longrope": {**_LLAMA, "rope_parameters": {**_LONGROPE, "attention_factor": 1.2}},
    "qwen3:yarn with an attention factor": {
        **_LLAMA,
        "head_dim": 8,
        "rope_parameters": {**_YARN, "attention_factor": 1.0},
    },
    "llama:yarn not truncated": {
        **_LLAMA,
        "rope_parameters": {**_YARN, "truncate": False, "beta_fast": 8.0, "mscale": 0.7},
    },
    "glm": {**_LLAMA, "head_dim": 16, "rope_parameters": _HALF_ROPE},
    "mistral:a window": {**_LLAMA, "sliding_window": 16},
    "gemma3:every second layer": {
        "text_config": {**_LAYERED, "model_type": "gemma3_text"},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
        "image_token_index": 5,
        "boi_token_index": 6,
        "eoi_token_index": 7,
    },
    "deepseek_v3:groups": {
        **{k: v for k, v in _LLAMA.items() if k != "rope_parameters"},
        "num_key_value_heads": 4,
        "rope_parameters": _ROPE,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 12,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 24,
    },
}


def model_type(case: str) -> str:
    """The architecture of a case."""
    return case.partition(":")[0]


def made_up(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Weights that follow from a tensor's name, of a size that keeps activations sensible.

    Returns:
        float32 of `shape`. The generator is NumPy's legacy one, whose stream never changes.
    """
    values = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    if len(shape) > 1:
        values *= np.sqrt(3 / min(shape))
    else:
        values *= 0.2
        values += float(name.endswith("weight"))
        values -= float(name.endswith("correction_bias"))  # an expert's score may be negative
    return values.astype(np.float32)


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    change: Callable[[str, npt.NDArray[np.float32]], Any] = lambda _, value: value,
) -> Path:
    """Write a Hugging Face folder of made-up weights, with the oracle's tokenizer.

    Args:
        folder: Made if it is not there.
        config: Its config.json.
        shapes: Of its tensors.
        change: Is given each name and value, and returns the NumPy array to store.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: change(name, made_up(name, tuple(shape))) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    add_tokenizer(folder)
    return folder


def add_tokenizer(folder: Path) -> None:
    """Put the oracle's tokenizer and chat template into a folder."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOKENIZER / name, folder / name)


def save_with_transformers(case: str, folder: Path, **options: Any) -> Any:
    """Let transformers make a model of a case and save it; needs torch.

    Args:
        case: A key of `CASES` or `CORRECTED`.
        folder: The new folder.
        options: For `save_pretrained`.

    Returns:
        The model, in evaluation mode.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = deepcopy((CASES | CORRECTED)[case])  # transformers writes into what it is given
    config = AutoConfig.for_model(model_type(case), **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(made_up(name, tuple(parameter.shape))))
    model.save_pretrained(folder, **options)
    add_tokenizer(folder)
    return model
