"""Writing a trained tiny model as a Hugging Face Llama folder."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from tokenizers import Tokenizer

from mlx_dpo.models.parameters import named_arrays
from tools.tiny_sft.tokenizer import (
    END,
    MAX_LENGTH,
    PAD,
    VOCAB_SIZE,
    token_id,
    tokenizer_settings,
)

MODEL_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 160,
    "intermediate_size": 400,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 40,
    "max_position_embeddings": MAX_LENGTH,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "float16",
}


def save_folder(folder: Path, model: nn.Module, tokenizer: Tokenizer) -> None:
    """Write config, half-precision weights, tokenizer and generation settings to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"eos_token_id": token_id(tokenizer, END), "pad_token_id": token_id(tokenizer, PAD)}
    weights = {
        name: value.astype(mx.float16)
        for name, value in sorted(named_arrays(model.parameters()).items())
    }
    mx.eval(weights)
    unfinished = folder / "unfinished.safetensors"
    mx.save_safetensors(str(unfinished), weights, metadata={"format": "pt"})
    unfinished.replace(folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / "config.json", MODEL_CONFIG | {"bos_token_id": None} | ids)
    write_json(folder / "tokenizer_config.json", tokenizer_settings())
    write_json(folder / "generation_config.json", {"do_sample": False, **ids})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON with a final line end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
