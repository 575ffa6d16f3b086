"""GGUF files: read by their own package, as MLX reads them back, and what is refused."""

import dataclasses
import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.convert.gguf import file as files
from mlx_dpo.convert.gguf import ollama
from mlx_dpo.convert.gguf.families import FAMILIES, describe, family_of, turned, turned_back
from mlx_dpo.convert.gguf.pieces import space_before
from mlx_dpo.convert.gguf.vocabulary import read_vocabulary
from mlx_dpo.convert.sources import Source, load_source
from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.models.dialects import for_mlx
from mlx_dpo.models.folder import load_model
from mlx_dpo.models.fuse import fused
from mlx_dpo.models.parameters import named_arrays, save_arrays
from mlx_dpo.models.rotary import correct_rotary
from mlx_dpo.models.tokenizer import load_tokenizer
from mlx_dpo.preferences.chat import ChatFormat, chat_format
from mlx_dpo.records import Message
from tests.runs.conftest import ORACLE

gguf = pytest.importorskip("gguf", reason="GGUF needs the package gguf")

IDS = mx.array([[5, 9, 11, 2, 7, 3, 60]])
CHAT = chat_format(load_tokenizer(ORACLE))
LLAMA3 = {
    **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "original_max_position_embeddings": 64,
}

LONGROPE: dict[str, Any] = {
    **{"type": "longrope", "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0]},
    "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}

PHI = {"hidden_act": "gelu_new", "tie_word_embeddings": False}
GELU = "gelu_pytorch_tanh"
GEMMA2 = {"hidden_activation": GELU, "query_pre_attn_scalar": 16, "sliding_window": 64}
GEMMA3 = {
    **{"hidden_activation": GELU, "query_pre_attn_scalar": 16, "sliding_window": 4},
    **{"sliding_window_pattern": 6, "rope_local_base_freq": 10000.0},
}


def built(config: dict[str, Any]) -> Any:
    kind = config["model_type"]
    module = import_module(f"mlx_lm.models.{'llama' if kind == 'mistral' else kind}")
    return module.Model(module.ModelArgs.from_dict(for_mlx(config)))


def made(folder: Path, kind: str, **extra: Any) -> Path:
    """A small model of an architecture with the oracle's tokenizer."""
    config = json.loads((ORACLE / "config.json").read_text()) | {
        **{"model_type": kind, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16},
        **{"intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, **extra},
    }
    shutil.copytree(ORACLE, folder)
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(3)
    model = built(config)
    arrays = {  # biases and norms that are not all zeros or ones
        name: value + 0.3 * mx.random.normal(value.shape) if value.ndim == 1 else value
        for name, value in named_arrays(model.parameters()).items()
        if not (config["tie_word_embeddings"] and name == "lm_head.weight")
    }
    save_arrays(folder / "model.safetensors", arrays, {"format": "mlx"})
    return folder


def written(folder: Path, file: Path, dtype: str, bits: str | None = None) -> tuple[Any, Any]:
    """A model as a file, and the plan of that."""
    model = load_model(folder, None)
    plan = files.plan(model, folder, dtype, bits)
    files.write(file, model, folder, CHAT, plan)
    return model, plan


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("llama", {"rope_scaling": LLAMA3, "tie_word_embeddings": False}),
        ("mistral", {}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen3", {"head_dim": 32}),
        ("gemma", {"hidden_act": GELU}),
        ("phi", {**PHI, "num_key_value_heads": 4}),
        ("phi3", {"tie_word_embeddings": False, "original_max_position_embeddings": 512}),
        ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 512}),
        ("gemma2", GEMMA2),
        ("gemma3_text", {**GEMMA3, "num_hidden_layers": 6}),
    ],
)
def test_every_tensor_is_the_models_bit_by_bit(
    kind: str, extra: dict[str, Any], tmp_path: Path
) -> None:
    folder = made(tmp_path / "model", kind, **extra)
    model, plan = written(folder, tmp_path / "model.gguf", "float32")
    (tmp_path / "back").mkdir()
    check = files.read_back(tmp_path / "model.gguf", model, folder, plan, tmp_path / "back")
    assert check == files.Check(same=len(plan.names), rounded=0, packed=0)
    back = Source(tmp_path / "back", None, tmp_path / "back")
    found, expected = load_source(back)(IDS), load_source(Source(folder, None, folder))(IDS)
    assert np.abs(np.array(found - expected)).max() <= (1e-5 if plan.shifted else 0)


def test_rows_of_queries_and_keys_are_those_that_llama_cpp_rotates_together(
    tmp_path: Path,
) -> None:
    """Rows 2i and 2i + 1 of a head are there what rows i and i + width / 2 are here."""
    written(ORACLE, tmp_path / "model.gguf", "float32")
    tensors = {each.name: each.data for each in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    layer: Any = load_model(ORACLE).layers[1].self_attn
    for name, own, heads in (("q", layer.q_proj, 6), ("k", layer.k_proj, 2)):
        ours = np.array(own.weight).reshape(heads, 16, 96)
        theirs = tensors[f"blk.1.attn_{name}.weight"].reshape(heads, 16, 96)
        assert np.array_equal(theirs[:, 0::2], ours[:, :8])
        assert np.array_equal(theirs[:, 1::2], ours[:, 8:])
    assert np.array_equal(tensors["blk.1.attn_v.weight"], np.array(layer.v_proj.weight))


def test_norms_of_a_gemma_are_whole_in_the_file(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", "gemma", hidden_act=GELU)
    model, _ = written(folder, tmp_path / "model.gguf", "bfloat16")
    tensors = {each.name: each.data for each in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    expected = np.array(model.model.norm.weight) + np.float32(1)
    assert np.array_equal(tensors["output_norm.weight"], expected)


def test_rows_are_turned_back() -> None:
    rows = np.arange(48, dtype=np.float32).reshape(12, 4)
    assert not np.array_equal(turned(rows, 3), rows)
    assert np.array_equal(turned_back(turned(rows, 3), 3), rows)
    assert np.array_equal(turned_back(turned(rows[:, 0], 2), 2), rows[:, 0])


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_sixteen_bits_are_those_that_mlx_rounds_to(dtype: str, kind: str, tmp_path: Path) -> None:
    model, plan = written(ORACLE, tmp_path / "model.gguf", dtype)
    check = files.read_back(tmp_path / "model.gguf", model, ORACLE, plan)
    assert check == files.Check(same=9, rounded=29, packed=0)  # norms stay float32
    kinds = {each.tensor_type.name for each in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds == {"F32", kind}


def test_a_tensor_that_is_read_back_as_another_is_an_error(tmp_path: Path) -> None:
    model, plan = written(ORACLE, tmp_path / "model.gguf", "float32")
    model.model.norm.weight = model.model.norm.weight * 1.01
    with pytest.raises(MlxDpoError, match=r"model.norm.weight is read back as other numbers"):
        files.read_back(tmp_path / "model.gguf", model, ORACLE, plan)


@pytest.mark.parametrize("bits", ["4", "8"])
def test_packed_tensors_are_read_back_as_the_package_unpacks_them(
    bits: str, tmp_path: Path
) -> None:
    model, plan = written(ORACLE, tmp_path / "model.gguf", "bfloat16", bits)
    (tmp_path / "back").mkdir()
    check = files.read_back(tmp_path / "model.gguf", model, ORACLE, plan, tmp_path / "back")
    assert check == files.Check(same=9, rounded=0, packed=29)
    back = fused(load_model(tmp_path / "back", mx.float32), mx.float32)
    kinds = set()
    for each in gguf.GGUFReader(tmp_path / "model.gguf").tensors:
        name = next(ours for ours, theirs in plan.names.items() if theirs == each.name)
        values = gguf.quants.dequantize(each.data, each.tensor_type)
        values = turned_back(values, plan.heads[name]) if name in plan.heads else values
        assert np.allclose(np.array(back[name]), values, rtol=1e-6, atol=1e-7), name
        kinds.add((each.name == "token_embd.weight", each.tensor_type.name))
    most = files.BITS[bits]
    assert kinds == {(True, "Q8_0"), (False, most), (False, "F32")}


def test_rows_that_no_block_divides_are_not_packed(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", "qwen3", intermediate_size=80)
    model, plan = written(folder, tmp_path / "model.gguf", "bfloat16", "8")
    down = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)]
    assert sorted(plan.left_out) == down
    check = files.read_back(tmp_path / "model.gguf", model, folder, plan)
    assert (check.rounded, check.packed) == (2, 13)


def test_the_file_says_what_the_model_is(tmp_path: Path) -> None:
    written(ORACLE, tmp_path / "model.gguf", "bfloat16")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    found = {name: field.contents() for name, field in fields.items()}
    assert found["general.architecture"] == "llama"
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert found["llama.block_count"] == 4
    assert found["llama.attention.head_count_kv"] == 2
    assert found["llama.rope.freq_base"] == 10000.0
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.eos_token_id"] == 3
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == CHAT.tokenizer.chat_template
    content = json.loads((ORACLE / "tokenizer.json").read_text())
    names = {number: token for token, number in content["model"]["vocab"].items()}
    assert found["tokenizer.ggml.tokens"] == [names[number] for number in range(512)]
    assert found["tokenizer.ggml.token_type"] == [3] * 5 + [1] * 507
    assert found["tokenizer.ggml.merges"][:2] == ["h e", "a r"]
    assert files.is_ours(tmp_path / "model.gguf")
    assert not files.is_ours(ORACLE / "config.json")
    assert not files.is_ours(ORACLE)


def described(kind: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys about rotary positions, and the tensors, of a model with other settings."""
    config = json.loads((ORACLE / "config.json").read_text()) | {"model_type": kind} | changes
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[FAMILIES[kind].arch]])
    model = built(config)
    if "rope_scaling" in changes:
        correct_rotary(model, kind, for_mlx(config))
    tensors = describe(writer, model, config, ORACLE)
    found = {name.split(".", 1)[1]: value.value for name, value in writer.kv_data[0].items()}
    return {name: value for name, value in found.items() if "scaling" in name}, tensors


def test_slow_rotary_frequencies_are_divided() -> None:
    """By 8 where the wavelength is beyond 64 tokens, by 1 below 16, by between in between."""
    keys, tensors = described("llama", rope_scaling=LLAMA3)
    share = np.clip((64 / (2 * np.pi * 10000.0 ** (np.arange(0, 16, 2) / 16)) - 1) / 3, 0, 1)
    (divisors,) = tensors.values()
    assert np.allclose(divisors, 1 / ((1 - share) / 8 + share), rtol=1e-5)
    assert len(set(np.round(divisors, 4))) > 2
    assert (keys, list(tensors)) == ({}, ["rope_freqs.weight"])


def test_yarn_is_given_as_numbers_where_llama_cpp_computes_the_same() -> None:
    for kind, changes in (("llama", {}), ("qwen2", {}), ("qwen3", {"head_dim": 16})):
        scaling = YARN | {"attention_factor": 1.5}
        keys, tensors = described(kind, **changes, rope_scaling=scaling)
        assert tensors == {}
        assert keys.pop("rope.scaling.attn_factor") == pytest.approx(1.5 / 1.1386, rel=1e-4)
        assert keys == {
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            "rope.scaling.original_context_length": 512,
        }


def test_yarn_with_other_ends_is_given_as_divisors_or_refused() -> None:
    scaling = YARN | {"beta_slow": 4.0}
    keys, tensors = described("llama", rope_scaling=scaling)
    (divisors,) = tensors.values()
    assert (divisors[0], divisors[-1]) == pytest.approx((1, 4))
    assert keys == {"rope.scaling.attn_factor": pytest.approx(1.1386, rel=1e-4)}
    with pytest.raises(UsageError, match=r"beta_slow.* others than llama.cpp computes for a qwen2"):
        described("qwen2", rope_scaling=scaling)


def test_longrope_has_factors_for_short_and_for_long_contexts() -> None:
    own = {"hidden_size": 96, "original_max_position_embeddings": 512}
    keys, tensors = described("phi3", **own, rope_scaling=LONGROPE, max_position_embeddings=2048)
    assert np.allclose(tensors["rope_factors_short.weight"], LONGROPE["short_factor"])
    assert np.allclose(tensors["rope_factors_long.weight"], LONGROPE["long_factor"])
    assert keys.pop("rope.scaling.attn_factor") == pytest.approx(np.sqrt(1 + 2 / 9))
    assert keys["rope.scaling.original_context_length"] == 512


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2"}, "not written of 'gpt2' here, only of llama, mistral"),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "gemma", "hidden_act": "silu"}, "computes gelu_pytorch_tanh for a gemma"),
        (
            {"model_type": "mistral", "layer_types": ["sliding_attention"]},
            "others than full_attention",
        ),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        family_of(config)


@pytest.mark.parametrize(
    ("kind", "scaling"),
    [("llama", {"rope_type": "dynamic", "factor": 2.0}), ("qwen2", LLAMA3)],
)
def test_a_kind_of_positions_that_is_not_written_is_refused(
    kind: str, scaling: dict[str, Any]
) -> None:
    name = scaling["rope_type"]
    with pytest.raises(UsageError, match=f"kind '{name}', which llama.cpp does not .* a {kind}"):
        described(kind, rope_scaling=scaling)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma2", GEMMA2 | {"query_pre_attn_scalar": 24}, "scalar is 24, and .* gemma2 with 16"),
        ("gemma3_text", GEMMA3 | {"sliding_window_pattern": 2}, "pattern is 2, and .* with 6"),
        ("gemma3_text", GEMMA3 | {"query_pre_attn_scalar": 24}, "scalar is 24, and .* with 16"),
    ],
)
def test_a_gemma_that_llama_cpp_computes_otherwise_is_refused(
    kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        described(kind, **changes)


DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ONLY_BYTES = {**BYTES, "use_regex": False}


def split(digits: str) -> dict[str, Any]:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


class Definition:
    """A tokenizer that works by other rules than the oracle's."""

    split_special_tokens = False

    def __init__(self, content: dict[str, Any]) -> None:
        self.content, self.backend_tokenizer = content, self

    def to_str(self) -> str:
        return json.dumps(self.content)

    def get_vocab_size(self) -> int:
        return 512

    def __getattr__(self, name: str) -> Any:
        return getattr(CHAT.tokenizer, name)


def vocabulary(**changes: Any) -> Any:
    """What is read of the oracle's tokenizer with other rules; rules of its model by themselves."""
    content = json.loads((ORACLE / "tokenizer.json").read_text())
    content["model"] |= changes.pop("model", {})
    return read_vocabulary(ORACLE, having(content | changes), 512)


def having(content: dict[str, Any]) -> ChatFormat:
    return dataclasses.replace(CHAT, tokenizer=Definition(content))


@pytest.mark.parametrize(
    ("steps", "ignore_merges", "name"),
    [
        ([BYTES], False, "gpt-2"),
        ([DIGITS, BYTES], False, "smollm"),
        ([split(r"\p{N}{1,3}"), ONLY_BYTES], True, "llama-bpe"),
        ([split(r"\p{N}{1,3}"), ONLY_BYTES], False, "smaug-bpe"),
        ([split(r"\p{N}"), ONLY_BYTES], False, "qwen2"),
    ],
)
def test_the_splitting_rule_is_named_as_llama_cpp_names_it(
    steps: list[Any], ignore_merges: bool, name: str
) -> None:
    before = {"type": "Sequence", "pretokenizers": steps}
    model = {"ignore_merges": ignore_merges}
    normaliser = {"type": "NFC"} if name == "qwen2" else None
    found = vocabulary(pre_tokenizer=before, model=model, normalizer=normaliser)
    assert found.rule == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "not known to split texts as this tokenizer"),
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "not known to split"),
        ({"pre_tokenizer": ONLY_BYTES}, "not known to split"),
        ({"pre_tokenizer": None}, "not known to split"),
        ({"normalizer": {"type": "Lowercase"}}, r"not known to split.*Lowercase"),
        ({"model": {"ignore_merges": True}}, "not known to split"),
        ({"model": {"byte_fallback": True}}, "not known to make the pieces of this tokenizer"),
        ({"model": {"type": "Unigram"}}, '"Unigram", and GGUF is written here with BPE alone'),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        vocabulary(**changes)


def test_a_token_that_takes_spaces_away_is_refused() -> None:
    added = json.loads((ORACLE / "tokenizer.json").read_text())["added_tokens"]
    added[1]["rstrip"] = True
    with pytest.raises(UsageError, match=r"its token <\|user\|> takes the spaces beside it away"):
        vocabulary(added_tokens=added)


def test_tokens_of_a_phi_3_take_spaces_away_by_its_name(tmp_path: Path) -> None:
    """llama.cpp does so for every special token but three, where the name has phi-3 in it."""
    content = json.loads((ORACLE / "tokenizer.json").read_text())
    added = content["added_tokens"]
    for token, name in zip(added, ("<unk>", "<s>", "<|endoftext|>", "</s>", "<|x|>"), strict=True):
        content["model"]["vocab"][name] = content["model"]["vocab"].pop(token["content"])
        token |= {"content": name, "rstrip": name in ("</s>", "<|x|>")}
    chat = having(content)
    assert read_vocabulary(ORACLE, chat, 512).is_stripping
    model = load_model(ORACLE, None)
    plan = files.plan(model, ORACLE, "bfloat16", None)
    files.write(tmp_path / "model.gguf", model, ORACLE, chat, plan)
    field = gguf.GGUFReader(tmp_path / "model.gguf").fields["general.name"]
    assert field.contents() == "model (Phi-3)"
    added[4]["rstrip"] = False
    with pytest.raises(UsageError, match=r"its token </s> takes the spaces .* Phi-3 or of none"):
        read_vocabulary(ORACLE, having(content), 512)


@pytest.mark.parametrize(("name", "is_said"), [("Phi-3-mine", False), ("mine", True)])
def test_a_name_by_which_llama_cpp_changes_tokens_is_left_out(
    name: str, is_said: bool, tmp_path: Path
) -> None:
    folder = made(tmp_path / name, "qwen2")
    written(folder, tmp_path / "model.gguf", "bfloat16")
    assert ("general.name" in gguf.GGUFReader(tmp_path / "model.gguf").fields) == is_said


def test_rows_without_a_token_and_tokens_without_a_row() -> None:
    found = read_vocabulary(ORACLE, CHAT, 514)
    assert found.tokens[511:] == [found.tokens[511], "[PAD512]", "[PAD513]"]
    assert found.kinds[511:] == [1, 5, 5]
    with pytest.raises(UsageError, match="has an id 511, and the model has 500 tokens"):
        read_vocabulary(ORACLE, CHAT, 500)


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PIECES: dict[str, Any] = {  # of which "ab" is joined before "bc", and "abc" last
    **{"type": "BPE", "unk_token": "<unk>", "byte_fallback": True},
    "vocab": {
        **{"<unk>": 0, "<0x0A>": 1, "ab": 2, "bc": 3, "abc": 4, "a": 5, "b": 6, "c": 7, "<e>": 8}
    },
    "merges": [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]],
}


def pieces(normalizer: Any = SPACES, pre_tokenizer: Any = None, **changes: Any) -> Any:
    """What is read of a tokenizer of pieces."""
    ending = {**json.loads((ORACLE / "tokenizer.json").read_text())["added_tokens"][0], "id": 8}
    content = {"added_tokens": [{**ending, "content": "<e>"}], "normalizer": normalizer}
    content |= {"pre_tokenizer": pre_tokenizer, "model": {**PIECES, **changes}}
    return read_vocabulary(ORACLE, having(content), 9)


def test_pieces_have_scores_in_the_order_of_their_merges() -> None:
    found = pieces()
    assert found.kinds == [2, 6, 1, 1, 1, 1, 1, 1, 3]
    assert found.scores == [-1e9, -1e9, 0, -1, -2, -1e9, -1e9, -1e9, -1e9]
    assert not found.adds_space
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    both = {"type": "Sequence", "normalizers": [prepend, SPACES]}
    assert pieces(both).adds_space
    writer = gguf.GGUFWriter(None, "llama")
    found.add_to(writer)
    assert writer.kv_data[0]["tokenizer.ggml.model"].value == "llama"
    assert "tokenizer.ggml.merges" not in writer.kv_data[0]


METASPACE = {"type": "Metaspace", "replacement": "\u2581", "split": False}


@pytest.mark.parametrize(
    ("scheme", "spoken", "expected"),
    [
        ("never", "ab", (False, True)),
        ("first", "<e>ab<e>c", (False, False)),  # a space would be put after <e>
        ("first", "ab", (True, False)),  # no space is put before one
        ("first", "ab<e>c", None),
        ("always", "ab<e>c", (True, False)),
        ("always", "<e> ab", (False, False)),
        ("always", "ab<e> c", None),
    ],
)
def test_a_space_is_put_before_conversations_as_the_tokenizer_does(
    scheme: str, spoken: str, expected: tuple[bool, bool] | None
) -> None:
    ending = {**json.loads((ORACLE / "tokenizer.json").read_text())["added_tokens"][0], "id": 8}
    vocab = {**PIECES["vocab"], "\u2581": 9}
    content: dict[str, Any] = {
        **{"version": "1.0", "normalizer": None, "post_processor": None, "decoder": None},
        **{"added_tokens": [{**ending, "content": "<e>"}], "model": {**PIECES, "vocab": vocab}},
        "pre_tokenizer": METASPACE | {"prepend_scheme": scheme},
    }
    assert space_before(content, [spoken]) == expected
    content["pre_tokenizer"] |= {"split": True}
    assert space_before(content, [spoken]) is None


@pytest.mark.parametrize(
    ("normaliser", "changes"),
    [
        (None, {}),
        (SPACES, {"merges": [["a", "b"], ["b", "c"], ["ab", "c"]]}),  # a + bc would be joined too
        (SPACES, {"merges": [["ab", "c"], ["a", "b"], ["a", "bc"], ["b", "c"]]}),  # abc is apart
    ],
)
def test_merges_that_no_scores_say_are_refused(normaliser: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not known to make the pieces"):
        pieces(normaliser, **changes)


class Templated:
    """A conversation format with another template."""

    def __init__(self, template: str) -> None:
        tokenizer = load_tokenizer(ORACLE)
        tokenizer.chat_template = template
        self.chat = chat_format(tokenizer)

    def turns(self) -> ollama.Turns | None:
        return ollama.turns_of(self.chat, adds_bos=False)


def test_the_template_in_gos_language_says_what_the_models_own_writes() -> None:
    turns = ollama.turns_of(CHAT, adds_bos=False)
    assert turns is not None
    spoken = (Message("system", "S"), Message("user", "U"), Message("assistant", "A"))
    asked = (*spoken, Message("user", "V"))
    assert turns.written(asked) == CHAT.prompt_text(asked)
    assert turns.template == (
        '{{ range .Messages }}{{ if eq .Role "system" }}<|system|>\n{{ .Content }}<|end|>\n'
        '{{ else if eq .Role "user" }}<|user|>\n{{ .Content }}<|end|>\n<|assistant|>\n'
        '{{ else if eq .Role "assistant" }}{{ .Content }}<|end|>\n{{ end }}{{ end }}'
    )


def test_a_default_system_text_is_written_where_nobody_gives_one() -> None:
    turns = Templated(
        "{% if messages[0].role != 'system' %}<|system|>Be kind.<|end|>{% endif %}{% for m in "
        "messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ).turns()
    assert turns is not None
    assert turns.template.startswith("{{ if not .System }}<|system|>Be kind.{{ end }}{{ range")


def test_a_template_that_refuses_a_system_text_is_said_without() -> None:
    turns = Templated(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ).turns()
    assert turns is not None
    assert turns.around.keys() == {"user", "assistant"}


def test_what_is_before_an_answer_only_once_it_is_written_is_said() -> None:
    turns = Templated(
        "{% for m in messages %}{% if m.role == 'user' %}[I] {{ m.content }}[/I]"
        "{% elif m.role == 'assistant' %} {{ m.content }}<|end|>"
        "{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    ).turns()
    assert turns is not None
    assert turns.around == {"user": ("[I] ", "[/I]"), "assistant": (" ", "<|end|>")}


@pytest.mark.parametrize(
    "turn",
    [
        "<|{{ m.role }}|>{{ m.content }}{{ '!' if loop.last }}<|end|>",
        "<|{{ m.role }}|>{{ loop.index }}{{ m.content }}<|end|>",
        "<|{{ m.role }}|>{% raw %}{{{% endraw %}{{ m.content }}<|end|>",
    ],
)
def test_a_template_that_can_not_be_said_is_left_out(turn: str) -> None:
    templated = Templated(
        f"{{% for m in messages %}}{turn}{{% endfor %}}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert templated.turns() is None
    text, has_template = ollama.modelfile(templated.chat, "./model.gguf", adds_bos=False)
    assert not has_template
    assert text == 'FROM ./model.gguf\nPARAMETER stop "<|end|>"\n'
