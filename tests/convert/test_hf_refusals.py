"""Folders that must not be converted: one line each, nothing executed, nothing left behind."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.convert.weights import write_weights
from mlx_dpo.errors import MlxDpoError, UsageError
from tests.convert.conftest import MakeSource, digests, run, tensors_of


def refusal(source: Path, destination: Path, **options: Any) -> str:
    before = digests(source) if source.is_dir() else {}
    with pytest.raises(UsageError) as raised:
        run(source, destination, **options)
    assert not destination.exists()
    assert [p.name for p in destination.parent.iterdir() if p.name.startswith(".")] == []
    assert (digests(source) if source.is_dir() else {}) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- Safetensors that MLX itself would read ------------------------------------------------------


def raw(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def f32(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


MALFORMED = {
    "overlap": raw({"a": f32([2], 0, 8), "b": f32([2], 4, 12)}, bytes(12)),
    "hole": raw({"a": f32([1], 0, 4), "b": f32([1], 8, 12)}, bytes(12)),
    "negative dimension": raw({"a": f32([-1], 0, 4)}, bytes(4)),
    "overflowing dimensions": raw({"a": f32([2**62, 4], 0, 0)}, b""),
    "trailing bytes": raw({"a": f32([1], 0, 4)}, bytes(12)),
    "truncated data": raw({"a": f32([4], 0, 16)}, bytes(8)),
    "truncated header": raw({"a": f32([1], 0, 4)}, bytes(4))[:20],
    "header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "no JSON": raw(b"{not json", bytes(4)),
    "empty": b"",
    "a deep header": raw(b"[" * 100_000, b""),
    "a type MLX has not": raw(
        {"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_safetensors(make_source: MakeSource, tmp_path: Path, kind: str) -> None:
    source = make_source()
    (source / "model.safetensors").write_bytes(MALFORMED[kind])
    assert "model.safetensors: " in refusal(source, tmp_path / "out")


@pytest.mark.parametrize("to", ["../secret.safetensors", "/etc/passwd", "a/b", "..", "", "a\\b"])
def test_an_index_that_points_outside(make_source: MakeSource, tmp_path: Path, to: str) -> None:
    source = make_source()
    (source / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = {"weight_map": {"model.norm.weight": to}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not a file name in this folder" in refusal(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_link_that_leads_out_of_the_folder(
    make_source: MakeSource, tmp_path: Path, name: str
) -> None:
    source = make_source()
    (source / name).rename(tmp_path / "elsewhere")
    (source / name).symlink_to(tmp_path / "elsewhere")
    assert "points outside the folder" in refusal(source, tmp_path / "out")


def test_links_of_the_hub_cache_are_followed(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in source.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    run(snapshot, tmp_path / "out")
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "model.safetensors.index.json: not readable as JSON"),
        ("[]", "model.safetensors.index.json: expected a JSON object"),
        ("{}", "not readable as an index with a weight_map"),
        ('{"weight_map": 3}', "not readable as an index with a weight_map"),
        ('{"weight_map": {}}', "names no tensor"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors is missing"),
        ('{"weight_map": {"a": "part.safetensors"}}', "which the index does not place there"),
    ],
)
def test_a_broken_index(make_source: MakeSource, tmp_path: Path, index: str, message: str) -> None:
    source = make_source()
    (source / "model.safetensors").rename(source / "part.safetensors")
    (source / "model.safetensors.index.json").write_text(index)
    assert message in refusal(source, tmp_path / "out")


# --- Weights that are not the model's ------------------------------------------------------------


def edit(name: str, value: Any) -> Callable[[str, Any], Any]:
    return lambda found, old: value(old) if found == name else old


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_by_name(
    make_source: MakeSource, tmp_path: Path, value: float
) -> None:
    def spoil(old: Any) -> Any:
        old.reshape(-1)[-1] = value
        return old

    name = "model.layers.1.mlp.up_proj.weight"
    source = make_source(change=edit(name, spoil))
    assert f"{name} holds NaN or infinite values" in refusal(source, tmp_path / "out")


@pytest.mark.parametrize("shape", [(1,), (1, 32), ()])
def test_a_shape_that_would_broadcast_is_refused(
    make_source: MakeSource, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    source = make_source(change=edit("model.norm.weight", lambda _: np.ones(shape, np.float32)))
    said = refusal(source, tmp_path / "out")
    assert f"model.norm.weight: expected shape [32], found {list(shape)}" in said


def test_a_square_matrix_of_gpt2_is_transposed_and_not_merely_accepted(
    make_source: MakeSource, tmp_path: Path
) -> None:
    """(32, 32) fits either way; the stored logits of test_hf tell which is right."""
    source = make_source("gpt2")
    run(source, tmp_path / "out")
    name = "h.0.attn.c_proj.weight"
    there = tensors_of(tmp_path / "out")[f"model.{name}"]
    assert mx.array_equal(there.T, tensors_of(source)[f"transformer.{name}"])


def test_missing_and_superfluous_tensors_are_named(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    tensors = tensors_of(source)
    more = {**tensors, "model.layers.0.extra.weight": mx.ones((2, 3))}
    mx.eval(more)
    mx.save_safetensors(str(source / "model.safetensors"), more)
    said = refusal(source, tmp_path / "out")
    assert "has no place for model.layers.0.extra.weight [2, 3]" in said
    del tensors["model.norm.weight"]
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    assert "tensors are missing: model.norm.weight" in refusal(source, tmp_path / "out")


def test_an_output_layer_that_only_claims_to_be_tied(
    make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(tie_word_embeddings=True)
    assert "lm_head.weight differs from the embeddings" in refusal(source, tmp_path / "out")


def test_values_too_large_for_the_cast(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(change=edit("model.norm.weight", lambda old: old * 1e6))
    said = refusal(source, tmp_path / "out", dtype="float16")
    assert said.startswith("model.norm.weight: holds values too large for float16")


# --- Configs -------------------------------------------------------------------------------------


def test_code_named_by_a_config_is_never_imported(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(model_file="evil.py")
    (source / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "names code to run" in refusal(source, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_auto_map_beside_a_known_architecture_is_ignored_with_a_note(
    make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.C"})
    (source / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    said = run(source, tmp_path / "out")
    assert "note: auto_map in config.json names code of the model's own; it was not run" in said
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out" / "evil.py").exists()
    run(tmp_path / "out", tmp_path / "back")
    for folder in ("out", "back"):
        assert "auto_map" not in json.loads((tmp_path / folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "nothing_known"}, "mlx-lm has no architecture 'nothing_known'"),
        ({"model_type": "cache"}, "mlx-lm has no architecture 'cache'"),
        ({"model_type": "..os"}, "model_type is '..os'"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["llama"]}, "model_type is ['llama']"),
        ({"quantization": {"bits": 4}}, "the model is quantised"),
        ({"quantization_config": {"quant_method": "awq"}}, "is quantised by awq"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', and mlx-lm computes 'silu' for llama"),
        ({"hidden_size": None}, "mlx-lm can't build llama from it"),
        ({"hidden_size": "wide"}, "mlx-lm can't build llama from it"),
        ({"num_hidden_layers": 3}, "tensors are missing: model.layers.2."),
        ({"num_hidden_layers": 1}, "has no place for model.layers.1."),
    ],
)
def test_configs_that_mlx_lm_can_not_compute(
    make_source: MakeSource, tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    assert message in refusal(make_source(**entries), tmp_path / "out")


# --- convert.json --------------------------------------------------------------------------------


HEAD, MASK = "lm_head.weight", "model.layers.0.attn.bias"
A_HEAD = {HEAD: ["F32", [4, 4]], "model.norm.weight": ["F32", [32]]}
A_MASK = {MASK: ["F32", [32]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "expected format 1, found 2"),
        ({"source": {}}, "does not say what it was converted from"),
        ({"tensors": 5}, "damaged"),
        ({"tensors": {"a": ["F32", [-1]]}}, "a: F32 [-1] is no tensor"),
        ({"tensors": {"a": ["F32", [2**30, 2**30]]}}, "is no tensor"),
        ({"tensors": {"a": ["F99", [1]]}}, "is no tensor"),
        ({"tensors": {"model.norm.weight": ["F32", [32]]}}, "does not fit the weights"),
        ({"same_as": {"x": "y"}}, "x is not among its tensors"),
        ({"left_out": ["model.norm.weight"]}, "does not use, and they were not stored"),
        ({"buffers": {"model.norm.weight": 0}}, "model.norm.weight is a weight"),
        ({"same_as": {HEAD: "model.norm.weight"}, "tensors": A_HEAD}, f"{HEAD} is a weight"),
        ({"config": {"model_type": "gpt2"}}, "is of a 'gpt2'"),
        ({"config": {"model_file": "x.py"}}, "model_file in its config is never written"),
    ],
)
def test_a_tampered_record_is_refused(
    make_source: MakeSource, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run(make_source(), tmp_path / "mlx")
    path = tmp_path / "mlx" / "convert.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert message in refusal(tmp_path / "mlx", tmp_path / "out")


@pytest.mark.parametrize(
    ("size", "number"), [(10**7, 0), (4, 0), (128, 7)], ids=["bomb", "short", "none"]
)
def test_a_packed_buffer_of_another_size_is_not_unpacked(
    make_source: MakeSource, tmp_path: Path, size: int, number: int
) -> None:
    import base64
    import zlib

    run(make_source(), tmp_path / "mlx")
    path = tmp_path / "mlx" / "convert.json"
    record = json.loads(path.read_text())
    record["packed"] = [base64.b64encode(zlib.compress(bytes(size))).decode()]
    record["buffers"], record["tensors"] = {MASK: number}, record["tensors"] | A_MASK
    path.write_text(json.dumps(record))
    assert "is not 128 bytes" in refusal(tmp_path / "mlx", tmp_path / "out")


# --- Places --------------------------------------------------------------------------------------


def test_the_destination_may_not_touch_the_source(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    before = digests(source)
    for place in (source, source / "inside", tmp_path):
        with pytest.raises(UsageError, match="overlaps"):
            run(source, place, overwrite=True)
    assert digests(source) == before


def test_an_existing_destination_needs_overwrite_and_must_be_ours(
    make_source: MakeSource, tmp_path: Path
) -> None:
    source, out = make_source(), tmp_path / "out"
    run(source, out)
    before = digests(out)
    with pytest.raises(UsageError, match="exists; pass --overwrite"):
        run(source, out)
    assert digests(out) == before
    run(source, out, overwrite=True, dtype="float16")
    assert digests(out) != before
    run(out, tmp_path / "back")
    run(out, tmp_path / "back", overwrite=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no conversion made it"):
        run(source, foreign, overwrite=True)
    assert (foreign / "thesis.txt").exists()
    os.symlink(out, tmp_path / "link")
    with pytest.raises(UsageError, match="no conversion made it"):
        run(source, tmp_path / "link", overwrite=True)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_its_files(make_source: MakeSource, tmp_path: Path, missing: str) -> None:
    source = make_source()
    (source / missing).unlink()
    assert f"no {missing}" in refusal(source, tmp_path / "out")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "gone", tmp_path / "out")


def test_a_failed_proof_leaves_nothing(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def write_one_wrong(arrays: dict[str, mx.array], *rest: Any) -> None:
        name = "model.norm.weight"
        write_weights({**arrays, name: arrays[name] + 1e-7}, *rest)

    monkeypatch.setattr("mlx_dpo.convert.conversion.write_weights", write_one_wrong)
    with pytest.raises(MlxDpoError, match=r"model\.norm\.weight: is not the same") as raised:
        run(make_source(), tmp_path / "out")
    assert raised.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["source"]
