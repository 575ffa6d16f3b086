"""PEFT's layout: adapters that PEFT itself saved, their logits beside PEFT's, and refusals."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_dpo.convert.adapters import read_adapter, write_mlx, write_peft
from mlx_dpo.errors import UsageError
from mlx_dpo.models.adapters import Part, parts_of
from mlx_dpo.models.parameters import load_arrays, read_header, same_bits
from tests.convert.adapters import base, difference, logits
from tests.convert.conftest import change_json
from tools.peft_adapters import FOLDER, KINDS, peft_difference, stored_logits, write_base

TOLERANCE = 2e-5  # of logits up to 4
LORA = {kind for kind in KINDS if not kind.startswith("dora")}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy of the plain adapter, to be spoilt."""
    return Path(shutil.copytree(FOLDER / "plain", tmp_path / "adapter"))


def settings(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(changes)


def change_tensors(folder: Path, change: Callable[[dict[str, mx.array]], Any]) -> None:
    """Rewrite the adapter's weights."""
    arrays = load_arrays(folder / "adapter_model.safetensors")
    change(arrays)
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), arrays)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_peft(kind: str, tmp_path: Path) -> None:
    of, _ = KINDS[kind]
    model = base(of, tmp_path / "base")
    bare = logits(model)
    found = logits(model, read_adapter(FOLDER / kind, model))
    assert difference(found, stored_logits()[kind]) < TOLERANCE
    assert difference(found, bare) > 0.5  # an adapter that does little would prove little


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_as_it_was(kind: str, tmp_path: Path) -> None:
    of, _ = KINDS[kind]
    model = base(of, tmp_path / "base")
    before = logits(model, read_adapter(FOLDER / kind, model))
    for number in ("first", "second"):
        (tmp_path / number).mkdir()
        write_peft(tmp_path / number, parts_of(model), model, "tiny")
    saved = (tmp_path / "first" / "adapter_model.safetensors").read_bytes()
    assert saved == (tmp_path / "second" / "adapter_model.safetensors").read_bytes()
    again = base(of, tmp_path / "base")
    assert difference(logits(again, read_adapter(tmp_path / "first", again)), before) < TOLERANCE


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"rslora", "patterns"}))
def test_tensors_come_back_bit_by_bit(kind: str, tmp_path: Path) -> None:
    of, _ = KINDS[kind]
    model = base(of, tmp_path / "base")
    write_peft(tmp_path, read_adapter(FOLDER / kind, model), model, None)
    original = load_arrays(FOLDER / kind / "adapter_model.safetensors")
    original = {name: v for name, v in original.items() if ".lora_" in name}
    written = load_arrays(tmp_path / "adapter_model.safetensors")
    assert written.keys() == original.keys()
    assert [name for name in original if not same_bits(original[name], written[name])] == []


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # PEFT calls what transformers has deprecated
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_what_is_written(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(
        "peft", reason="CI has no PEFT; `pip install peft` beside the extra torch runs it"
    )
    of, _ = KINDS[kind]
    model = base(of, tmp_path / "base")
    write_peft(tmp_path, read_adapter(FOLDER / kind, model), model, None)
    assert peft_difference(kind, tmp_path, tmp_path / "base") < TOLERANCE


def test_config_of_a_plain_adapter(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    write_peft(tmp_path, read_adapter(FOLDER / "plain", model), model, "some/base")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "some/base",
        "r": 2,
        "lora_alpha": 5,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
        "target_modules": [
            *("down_proj", "gate_proj", "k_proj", "o_proj"),
            *("q_proj", "up_proj", "v_proj"),
        ],
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    header = read_header(tmp_path / "adapter_model.safetensors")
    assert header.metadata == {"format": "pt"}
    shapes = header.tensors
    assert shapes["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"] == ((2, 32), "F32")
    assert shapes["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"] == ((48, 2), "F32")


def test_config_of_uneven_adapters(tmp_path: Path) -> None:
    """One alpha for all: by hand, B takes up what it does not say."""
    model = base("llama", tmp_path / "base")
    query, value = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
    parts = {
        query: Part(mx.ones((32, 2)), mx.ones((2, 32)), scale=2.0),  # alpha 4
        value: Part(mx.ones((32, 3)), mx.ones((3, 16)), scale=0.5),  # alpha 1.5
        "model.layers.2.self_attn.v_proj": Part(mx.ones((32, 2)), mx.ones((2, 16)), scale=2.0),
    }
    write_peft(tmp_path, parts, model, None)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert isinstance(config["lora_alpha"], int)
    assert config["rank_pattern"] == {value: 3}
    assert config["target_modules"] == [query, value, "model.layers.2.self_attn.v_proj"]
    arrays = load_arrays(tmp_path / "adapter_model.safetensors")
    assert arrays[f"base_model.model.{query}.lora_B.weight"].tolist() == [[1.0, 1.0]] * 32
    folded = arrays[f"base_model.model.{value}.lora_B.weight"]
    assert folded[0].tolist() == pytest.approx([0.5 / (4 / 3)] * 3)


def test_gpt2_gets_pytorchs_names(tmp_path: Path) -> None:
    model = base("gpt2", tmp_path / "base")
    adapter = read_adapter(FOLDER / "gpt2", model)
    assert "model.h.0.attn.c_attn" in adapter
    write_peft(tmp_path, adapter, model, None)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    names = load_arrays(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight" in names


@pytest.mark.parametrize(
    ("spelling", "shape"), [("", (-1,)), (".weight", (-1,)), ("", (-1, 1)), ("", (1, -1))]
)
def test_magnitudes_in_each_spelling(spelling: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER / "dora", tmp_path / "adapter"))

    def respell(arrays: dict[str, mx.array]) -> None:
        for name in [name for name in arrays if "magnitude" in name]:
            arrays[name + spelling] = arrays.pop(name).reshape(shape)

    change_tensors(folder, respell)
    model = base("llama", tmp_path / "base")
    found = logits(model, read_adapter(folder, model))
    assert difference(found, stored_logits()["dora"]) < TOLERANCE


def test_dropout_of_training_is_no_obstacle(adapter: Path, tmp_path: Path) -> None:
    change_json(adapter / "adapter_config.json", settings(lora_dropout=0.1))
    assert read_adapter(adapter, base("llama", tmp_path / "base"))


def test_half_precision_becomes_float32(adapter: Path, tmp_path: Path) -> None:
    change_tensors(adapter, lambda a: a.update({n: v.astype(mx.bfloat16) for n, v in a.items()}))
    parts = read_adapter(adapter, base("llama", tmp_path / "base"))
    assert {part.a.dtype for part in parts.values()} == {mx.float32}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    "biases": ({"bias": "all"}, "bias is 'all': biases of the model were trained"),
    "bias of LoRA": ({"lora_bias": True}, "lora_bias is True"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
    "tokens": ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    "parameters": ({"target_parameters": ["experts.w1"]}, "target_parameters"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    "replication": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "QALoRA": ({"use_qalora": True}, "use_qalora"),
    "BD-LoRA": ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    "Arrow": ({"arrow_config": {"top_k": 2}}, "arrow_config"),
    "KaSA": ({"kasa_config": {"beta": 1.0}}, "kasa_config"),
    "MonteCLoRA": ({"monteclora_config": {"num_samples": 2}}, "monteclora_config"),
    "VeLoRA": ({"velora_config": {"num_groups": 2}}, "velora_config"),
    "Megatron": ({"megatron_config": {"a": 1}}, "megatron_config"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    "OLoRA": ({"init_lora_weights": "olora"}, "weights were changed before training"),
    "CorDA": ({"init_lora_weights": "corda"}, "weights were changed before training"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "weights were changed before training"),
    "EVA": ({"init_lora_weights": "eva"}, "weights were changed before training"),
    "LoRA-GA": ({"init_lora_weights": "lora_ga"}, "weights were changed before training"),
    "a setting to come": ({"use_new_idea": True}, "use_new_idea is True: a setting that is not"),
    "no rank": ({"r": 0}, "rank is 0; expected"),
    "no alpha": ({"lora_alpha": "16"}, "lora_alpha is '16'; expected"),
    "an alpha that is not finite": ({"lora_alpha": math.nan}, "lora_alpha is nan; expected"),
    "an alpha beyond numbers": ({"lora_alpha": 10**400}, r"lora_alpha is 10+\.\.\.; expected"),
    "no yes or no": ({"use_rslora": "false"}, "use_rslora is 'false'; expected true or false"),
    "no pattern": ({"rank_pattern": {"(": 2}}, "rank_pattern: .* is not a pattern"),
    "a rank that is another": ({"r": 4}, "adapter_config.json says rank 4"),
    "DoRA without magnitudes": ({"use_dora": True}, "has no magnitude"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_setting_that_is_refused(case: str, adapter: Path, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    change_json(adapter / "adapter_config.json", settings(**changes))
    with pytest.raises(UsageError, match=message) as caught:
        read_adapter(adapter, base("llama", tmp_path / "base"))
    assert "\n" not in str(caught.value)


PATH = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update({f"{PATH}.lora_C.weight": mx.ones(2)}), "lora_C.weight, which is no"),
        (lambda a: a.pop(f"{PATH}.lora_B.weight"), "q_proj has no matrix B"),
        (lambda a: a.update({f"{PATH}.lora_B.weight": mx.ones((32, 3))}), "says rank 2"),
        (lambda a: a.update({f"{PATH}.lora_B.bias": mx.ones(32)}), "lora_B.bias, which is no"),
        (
            lambda a: a.update({f"{PATH}.lora_A.weight": mx.full((2, 32), mx.nan)}),
            "NaN or infinite",
        ),
        (lambda a: a.update({f"{PATH}.lora_A.weight": mx.ones((2, 32), mx.int32)}), "is int32"),
        (
            lambda a: a.update({f"{PATH}.lora_magnitude_vector": mx.ones(32)}),
            "has a magnitude, and adapter_config.json says use_dora is false",
        ),
        (
            lambda a: a.update({"base_model.model.model.embed_tokens.weight": mx.ones((96, 32))}),
            "embed_tokens.weight, and it differs from the model's",
        ),
        (
            lambda a: a.update({"base_model.model.no.such.weight": mx.ones((96, 32))}),
            "no.such.weight, which is no",
        ),
        (
            lambda a: a.update(
                {
                    f"{PATH[:-17]}mlp.experts.1.up_proj.lora_{m}.weight": mx.ones(s)
                    for m, s in (("A", (2, 32)), ("B", (48, 2)))
                }
            ),
            "experts.1.up_proj, one expert of many",
        ),
        (lambda a: a.clear(), "holds no tensor"),
    ],
    ids=range(11),
)
def test_tensors_that_are_refused(
    change: Callable[[dict[str, mx.array]], Any], message: str, adapter: Path, tmp_path: Path
) -> None:
    change_tensors(adapter, change)
    with pytest.raises(UsageError, match=message):
        read_adapter(adapter, base("llama", tmp_path / "base"))


def test_a_tied_embedding_is_refused_both_ways(tmp_path: Path) -> None:
    model = base("llama:tied", tmp_path / "base")
    with pytest.raises(UsageError, match="embed_tokens, which is the model's output layer too"):
        read_adapter(FOLDER / "embedding", model)
    parts = {"model.embed_tokens": Part(mx.ones((96, 2)), mx.ones((2, 32)), 1.0)}
    with pytest.raises(UsageError, match="output layer too"):
        write_peft(tmp_path, parts, model, None)
    (tmp_path / "mlx").mkdir()
    write_mlx(tmp_path / "mlx", parts, model)  # there it means both


def test_a_packed_embedding_is_not_compared(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    nn.quantize(model, 32, 4, class_predicate=lambda _, m: isinstance(m, nn.Embedding))
    with pytest.raises(UsageError, match="packed, so that they can't be compared"):
        read_adapter(FOLDER / "embedding", model)


def test_pickles_are_never_read(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"adapter_model.bin is a pickle.*safe_serialization"):
        read_adapter(adapter, base("llama", tmp_path / "base"))


def test_experts_are_not_written(tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    path = "model.layers.0.mlp.up_proj"
    with pytest.raises(UsageError, match="up_proj, experts in one array"):
        write_peft(tmp_path, {path: Part(mx.ones((4, 2, 32)), mx.ones((4, 48, 2)), 1.0)}, model, "")


def test_stored_files_name_no_machine() -> None:
    for file in FOLDER.rglob("adapter_config.json"):
        assert "/" not in json.loads(file.read_text())["base_model_name_or_path"]


def test_bases_follow_from_their_names(tmp_path: Path) -> None:
    first, second = (write_base("llama", tmp_path / each) for each in ("1", "2"))
    name = "model.safetensors"
    assert (first / name).read_bytes() == (second / name).read_bytes()
