"""Model and pairs as other trainers take them: a Hugging Face folder, and texts.

Its tokenizer knows a word for each id, so that trainers that tokenise get exactly the ids meant.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from benchmarks.workload import SEED, Shape, make_model
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import PreferenceExample

_SPECIAL = ("<pad>", "<bos>", "<eos>")  # ids 0, 1, 2
EOS_ID = 2


def save(shape: Shape, folder: Path) -> None:
    """Write `make_model` of this shape, and the tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    weights = named_arrays(make_model(shape).parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    _write_json(folder / "config.json", _config(shape))
    vocabulary = {_word(number): number for number in range(shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "bos_token", "eos_token"), _SPECIAL, strict=True))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048}
    _write_json(folder / "tokenizer_config.json", {**settings, **names})


def save_adapters(shape: Shape, rank: int, file: Path) -> None:
    """Write A of an adapter on each linear layer of the blocks, uniform within 1 / sqrt(in)."""
    rng = np.random.default_rng(SEED)
    arrays = {}
    for path, module in make_model(shape).named_modules():
        if isinstance(module, nn.Linear) and ".layers." in path:
            inputs = module.weight.shape[1]
            a = rng.uniform(-(inputs**-0.5), inputs**-0.5, (inputs, rank))
            arrays[f"{path}.lora_a"] = mx.array(a.astype(np.float32))
    mx.save_safetensors(str(file), arrays)


def closed(pair: PreferenceExample) -> PreferenceExample:
    """The pair with EOS for the last id of each response, where trainers append one they miss."""
    prompt, chosen, rejected = pair
    return PreferenceExample(prompt, [*chosen[:-1], EOS_ID], [*rejected[:-1], EOS_ID])


def as_row(pair: PreferenceExample) -> dict[str, Any]:
    """A pair as ids, named as in `PreferenceExample`, and as text: ``prompt chosen rejected``."""
    prompt, chosen, rejected = (" ".join(map(_word, ids)) for ids in pair)
    return {**pair._asdict(), "prompt": prompt + " ", "chosen": chosen, "rejected": rejected}


def _word(number: int) -> str:
    return _SPECIAL[number] if number < len(_SPECIAL) else f"w{number}"


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": EOS_ID,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
