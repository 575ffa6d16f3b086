"""Hugging Face folders to MLX and back, without PyTorch: its numbers are stored."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_dpo.convert.hf.model import mlx_model
from mlx_dpo.convert.torch_zip.archive import write_torch_zip
from mlx_dpo.convert.verify import TOLERANCE, mlx_logits
from mlx_dpo.errors import UsageError
from tests.convert.conftest import (
    GOLDEN,
    MakeSource,
    assert_same_bits,
    digests,
    run,
    tensors_of,
)
from tests.convert.make_golden import COLUMNS, IDS, POSITIONS
from tests.convert.tiny import CASES


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def test_the_stored_numbers_are_of_these_models() -> None:
    assert list(GOLDEN) == list(CASES)


@pytest.mark.parametrize("case", CASES)
def test_mlx_computes_what_torch_computed(
    make_source: MakeSource, tmp_path: Path, case: str
) -> None:
    run(make_source(case), tmp_path / "mlx", verify=False)
    found = mlx_logits(mlx_model(tmp_path / "mlx"), IDS)[0, POSITIONS, COLUMNS]
    allowed = TOLERANCE * max(1.0, GOLDEN[case]["largest"])
    np.testing.assert_allclose(found, GOLDEN[case]["logits"], rtol=0, atol=allowed)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_is_bit_identical(
    make_source: MakeSource, tmp_path: Path, case: str
) -> None:
    source = make_source(case)
    before = digests(source)
    there, back = tmp_path / "mlx", tmp_path / "back"
    assert "bit-identical" in run(source, there)
    assert "bit-identical" in run(there, back)
    assert_same_bits(tensors_of(back), tensors_of(source))
    assert config_of(back) == config_of(source)
    assert (back / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert (back / "chat_template.jinja").exists()
    assert digests(source) == before


@pytest.mark.parametrize("case", CASES)
def test_the_rule_of_the_architecture_undoes_what_mlx_lm_did(
    make_source: MakeSource, tmp_path: Path, case: str
) -> None:
    """As for a model trained before conversions were recorded: nothing tells of the source."""
    source, there, back = make_source(case), tmp_path / "mlx", tmp_path / "back"
    run(source, there, verify=False)
    (there / "convert.json").unlink()
    run(there, back)
    assert_same_bits(tensors_of(back), tensors_of(source))


def test_another_rotary_base_is_another_model(make_source: MakeSource, tmp_path: Path) -> None:
    """The stored numbers are of a base of 50000; a reader that lost it would not notice."""
    source = make_source("llama", rope_parameters=None)
    found = mlx_logits(mlx_model(source), IDS)[0, POSITIONS, COLUMNS]
    assert np.abs(found - GOLDEN["llama"]["logits"]).max() > 1e-2


def test_the_mlx_config_has_both_spellings(make_source: MakeSource, tmp_path: Path) -> None:
    run(make_source(), tmp_path / "mlx", verify=False)
    config = config_of(tmp_path / "mlx")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 50_000


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_half_precision_stays_bit_by_bit(
    make_source: MakeSource, tmp_path: Path, dtype: mx.Dtype
) -> None:
    source = make_source("gpt2", dtype=str(dtype).removeprefix("mlx.core."))
    halves = {name: value.astype(dtype) for name, value in tensors_of(source).items()}
    mx.eval(halves)
    mx.save_safetensors(str(source / "model.safetensors"), halves, metadata={"format": "pt"})
    run(source, tmp_path / "mlx")
    run(tmp_path / "mlx", tmp_path / "back")
    assert {v.dtype for v in tensors_of(tmp_path / "mlx").values()} == {dtype}
    assert_same_bits(tensors_of(tmp_path / "back"), tensors_of(source))


def test_a_cast_is_told_with_its_size_and_named_in_the_config(
    make_source: MakeSource, tmp_path: Path
) -> None:
    said = run(make_source("gpt2"), tmp_path / "mlx", dtype="bfloat16")
    assert "the cast changes none by more than 0.00" in said
    assert {v.dtype for v in tensors_of(tmp_path / "mlx").values()} == {mx.bfloat16}
    assert config_of(tmp_path / "mlx")["dtype"] == "bfloat16"


def test_shards_both_ways(make_source: MakeSource, tmp_path: Path) -> None:
    source, there, back = make_source("gpt2"), tmp_path / "mlx", tmp_path / "back"
    run(source, there, max_shard_bytes=40_000)
    shards = sorted(file.name for file in there.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    run(there, back, max_shard_bytes=30_000)
    index = json.loads((back / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors_of(source).keys()
    assert index["metadata"]["total_size"] == sum(v.nbytes for v in tensors_of(source).values())
    assert max(file.stat().st_size for file in back.glob("*.safetensors")) < 70_000
    run(back, tmp_path / "again")
    assert_same_bits(tensors_of(tmp_path / "again"), tensors_of(there))


@pytest.mark.parametrize("num_files", [1, 2])
def test_pytorch_bin_is_read_without_torch(
    make_source: MakeSource, tmp_path: Path, num_files: int
) -> None:
    source = make_source("gpt2")
    run(source, tmp_path / "expected")
    tensors = {name: np.array(value) for name, value in tensors_of(source).items()}
    (source / "model.safetensors").unlink()
    names = list(tensors)
    if num_files == 1:
        write_torch_zip(source / "pytorch_model.bin", tensors)
    else:
        listed: dict[str, str] = {}
        for number in range(num_files):
            file = f"pytorch_model-0000{number + 1}-of-0000{num_files}.bin"
            part = {name: tensors[name] for name in names[number::num_files]}
            write_torch_zip(source / file, part)
            listed |= dict.fromkeys(part, file)
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": listed}))
    run(source, tmp_path / "mlx")
    assert_same_bits(tensors_of(tmp_path / "mlx"), tensors_of(tmp_path / "expected"))
    run(tmp_path / "mlx", tmp_path / "back")
    assert tensors_of(tmp_path / "back").keys() == tensors.keys()


def add_tensors(folder: Path, **more: mx.array) -> None:
    tensors = {**tensors_of(folder), **{k.replace("__", "."): v for k, v in more.items()}}
    mx.eval(tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("case", "embedding"),
    [
        ("llama:tied with biases", "model.embed_tokens.weight"),
        ("gpt2", "transformer.wte.weight"),
        ("gemma", "model.embed_tokens.weight"),
    ],
)
def test_tied_embeddings_are_stored_once_and_follow_the_source(
    make_source: MakeSource, tmp_path: Path, case: str, embedding: str
) -> None:
    """torch.save of a state dict holds them twice."""
    source = make_source(case)
    add_tensors(source, lm_head__weight=tensors_of(source)[embedding])
    run(source, tmp_path / "mlx")
    assert not [name for name in tensors_of(tmp_path / "mlx") if "lm_head" in name]
    run(tmp_path / "mlx", tmp_path / "back")
    assert_same_bits(tensors_of(tmp_path / "back"), tensors_of(source))


def test_buffers_of_older_checkpoints_come_back(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source("gpt2")
    mask = mx.tril(mx.ones((128, 128))).astype(mx.bool_)[None, None]
    for layer in range(2):
        name = f"transformer__h__{layer}__attn__"
        add_tensors(source, **{f"{name}bias": mask, f"{name}masked_bias": mx.array(-1e4)})
    run(source, tmp_path / "mlx")
    assert not [name for name in tensors_of(tmp_path / "mlx") if "masked_bias" in name]
    assert (tmp_path / "mlx" / "convert.json").stat().st_size < 10_000
    run(tmp_path / "mlx", tmp_path / "back")
    assert_same_bits(tensors_of(tmp_path / "back"), tensors_of(source))


def test_names_without_prefix_come_back_without_prefix(
    make_source: MakeSource, tmp_path: Path
) -> None:
    """GPT-2 on the hub was saved without its head, and its names have no `transformer.`."""
    source = make_source("gpt2")
    tensors = {n.removeprefix("transformer."): v for n, v in tensors_of(source).items()}
    mx.eval(tensors)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    run(source, tmp_path / "mlx")
    run(tmp_path / "mlx", tmp_path / "back")
    assert_same_bits(tensors_of(tmp_path / "back"), tensors)


def test_a_config_silent_about_ties_is_read_from_the_weights(
    make_source: MakeSource, tmp_path: Path
) -> None:
    """mlx-lm's llama takes silence for tied, and would drop the output layer."""
    run(make_source("llama", tie_word_embeddings=None), tmp_path / "mlx")
    assert "lm_head.weight" in tensors_of(tmp_path / "mlx")
    assert config_of(tmp_path / "mlx")["tie_word_embeddings"] is False
    run(tmp_path / "mlx", tmp_path / "back")
    assert "tie_word_embeddings" not in config_of(tmp_path / "back")


def test_an_mlx_folder_can_be_cast_and_keeps_its_way_back(
    make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source("gpt2")
    run(source, tmp_path / "mlx")
    run(tmp_path / "mlx", tmp_path / "half", to="mlx", dtype="float16")
    run(tmp_path / "half", tmp_path / "back")
    expected = {name: value.astype(mx.float16) for name, value in tensors_of(source).items()}
    assert_same_bits(tensors_of(tmp_path / "back"), expected)


def test_to_decides_where_a_folder_can_go_both_ways(
    make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source("gpt2")
    run(source, tmp_path / "torch", to="torch")
    assert_same_bits(tensors_of(tmp_path / "torch"), tensors_of(source))
    assert not (tmp_path / "torch" / "convert.json").exists()


def test_an_architecture_without_a_rule_follows_its_record(
    make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source("llama", model_type="iquestcoder")
    run(source, tmp_path / "mlx")
    run(tmp_path / "mlx", tmp_path / "back")
    assert_same_bits(tensors_of(tmp_path / "back"), tensors_of(source))
    (tmp_path / "mlx" / "convert.json").unlink()
    shutil.rmtree(tmp_path / "back")
    with pytest.raises(Exception, match=r"'iquestcoder' is not known, and no convert.json"):
        run(tmp_path / "mlx", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_courses_artifact_of_a_hugging_face_model(
    make_source: MakeSource, tmp_path: Path
) -> None:
    artifact = tmp_path / "BaseLM-SFT"
    (artifact / "hf_tokenizer").mkdir(parents=True)
    source = make_source()
    for file in [*source.glob("tokenizer*"), *source.glob("chat_template*")]:
        file.rename(artifact / "hf_tokenizer" / file.name)
    source.rename(artifact / "hf_model")
    config = {"kind": "huggingface_causal_lm", "model_path": "hf_model", "tokenizer_path": None}
    (artifact / "config.json").write_text(json.dumps(config))
    (artifact / "manifest.json").write_text(json.dumps({"name": "BaseLM-SFT", "kind": "x"}))
    run(artifact, tmp_path / "mlx")
    assert (tmp_path / "mlx" / "tokenizer.json").is_file()
    run(tmp_path / "mlx", tmp_path / "BaseLM-DPO")
    back = tmp_path / "BaseLM-DPO"
    assert_same_bits(tensors_of(back / "hf_model"), tensors_of(artifact / "hf_model"))
    assert (back / "hf_tokenizer" / "tokenizer.json").is_file()
    assert json.loads((back / "manifest.json").read_text())["name"] == "BaseLM-DPO"
    assert config_of(back)["kind"] == "huggingface_causal_lm"


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
def test_float64_weights_are_refused_before_anything_is_computed_with_them(
    make_source: MakeSource, tmp_path: Path, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU refuses any operation on them."""
    source = make_source()
    wide = {name: np.array(a, np.float64) for name, a in tensors_of(source).items()}
    (source / "model.safetensors").unlink()
    if file_format == "bin":
        write_torch_zip(source / "pytorch_model.bin", wide)
    else:
        save_file(wide, source / "model.safetensors", metadata={"format": "pt"})
    for name in ("astype", "view", "__eq__", "__sub__"):
        real = getattr(mx.array, name)

        def operation(array: mx.array, *arguments: Any, real: Any = real) -> Any:
            if array.dtype == mx.float64:
                raise ValueError("float64 is not supported on the GPU")
            return real(array, *arguments)

        monkeypatch.setattr(mx.array, name, operation)
    with pytest.raises(UsageError, match=r"(is float64|as F64); expected float32, float16 or bfl"):
        run(source, tmp_path / "mlx")
