"""Course artifacts that are not as they must be: one line, nothing written, nothing followed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.convert.conversion import Kind, kind_of
from mlx_dpo.convert.course.artifact import hf_folders, write_hf_records
from mlx_dpo.convert.course.checkpoint import is_course_folder
from mlx_dpo.convert.sources import load_folder
from mlx_dpo.convert.torch_zip.archive import read_torch_zip, write_torch_zip
from mlx_dpo.errors import UsageError
from mlx_dpo.models.parameters import named_arrays
from tests import g2c
from tests.convert.conftest import change_json, run

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    shutil.copytree(g2c.FOLDER / "artifacts", tmp_path / "artifacts")
    return tmp_path / "artifacts" / "models" / "StoryLM-1M-SFT"


@pytest.fixture
def mlx_folder(tmp_path: Path) -> Path:
    run(g2c.ARTIFACT, tmp_path / "mlx", verify=False)
    return tmp_path / "mlx"


def rewrite(path: Path, change: Change) -> None:
    if path.suffix != ".pt":
        change_json(path, change)
        return
    content = read_torch_zip(path)
    change(content)
    write_torch_zip(path, content)


def refusal(source: Path) -> str:
    out = source.parent / "out"
    with pytest.raises(UsageError) as raised:
        run(source, out)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    assert not out.exists()
    assert not [path for path in out.parent.iterdir() if "out" in path.name]
    return str(raised.value)


def set_param(number: int, value: Any) -> Change:
    return lambda content: content["params"].__setitem__(number, value)


def with_value(number: int, value: float) -> Change:
    def change(content: dict[str, Any]) -> None:
        content["params"][number] = content["params"][number].copy()
        content["params"][number].flat[3] = value

    return change


ZEROS = np.zeros
MODEL_CHANGES: dict[str, tuple[Change, str]] = {
    "a shape that would broadcast": (
        set_param(2, ZEROS((1,), np.float32)),
        "params[2] (model.layers.0.ln1.weight): expected shape [64], found [1]",
    ),
    "a matrix the MLX way round": (
        set_param(14, ZEROS((256, 64), np.float32)),
        "params[14] (model.layers.0.fc1.weight): expected shape [64, 256], found [256, 64]",
    ),
    "a smaller vocabulary": (
        set_param(52, ZEROS((598,), np.float32)),
        "params[52] (head_bias): expected shape [599], found [598]",
    ),
    "a number for a tensor": (set_param(3, 0.0), "params[3] (model.layers.0.ln1.bias)"),
    "integers": (set_param(2, ZEROS(64, np.int32)), "model.layers.0.ln1.weight: expected float32"),
    "float64": (set_param(2, ZEROS(64)), "model.layers.0.ln1.weight: expected float32"),
    "NaN": (with_value(0, np.nan), "model.token_embed.weight holds NaN"),
    "infinity": (with_value(52, np.inf), "head_bias holds NaN or infinite"),
    "minus infinity": (with_value(20, -np.inf), "model.layers.1.attention.q.weight holds NaN"),
    "one tensor too few": (lambda c: c["params"].pop(), "expected a list of 53 tensors"),
    "one tensor too many": (lambda c: c["params"].append(ZEROS(1)), "found 54"),
    "no list": (lambda c: c.update(params={}), "expected a list of 53 tensors"),
    "a missing key": (lambda c: c.pop("vocab_size"), "expected the keys vocab_size"),
    "one key too many": (lambda c: c.update(optimizer=1), "found vocab_size"),
    "no sizes": (lambda c: c.update(model_config=[]), "model_config: expected a dict"),
    "a size missing": (lambda c: c["model_config"].pop("num_heads"), "'num_heads' is missing"),
    "a size unknown": (lambda c: c["model_config"].update(dropout=0), "'dropout' is not known"),
    "a size of no use": (lambda c: c["model_config"].update(num_heads=5), "num_heads 5"),
    "a size of zero": (lambda c: c.update(vocab_size=0), "vocab_size must be a positive integer"),
    "endless layers": (
        lambda c: c["model_config"].update(num_layers=10**12),
        "expected a list of 16000000000005 tensors",
    ),
    "another vocabulary": (lambda c: c.update(vocab_size=600), "expected shape [600, 64]"),
}


@pytest.mark.parametrize(("change", "message"), MODEL_CHANGES.values(), ids=MODEL_CHANGES)
def test_a_model_file_with_anything_else_is_refused_by_name(
    artifact: Path, change: Change, message: str
) -> None:
    rewrite(artifact / "model.pt", change)
    # The other files would object first.
    for name in ("config.json", "manifest.json"):
        rewrite(artifact / name, lambda c: (c.pop("model_config"), c.pop("vocab_size", None)))
    assert message in refusal(artifact)


FILE_CHANGES: dict[str, tuple[str, Change, str]] = {
    "config disagrees": (
        "config.json",
        lambda c: c["model_config"].update(max_seq_len=64),
        "config.json: model_config",
    ),
    "manifest disagrees": (
        "manifest.json",
        lambda c: c["model_config"].update(num_heads=8),
        "manifest.json: model_config",
    ),
    "manifest's vocabulary": (
        "manifest.json",
        lambda c: c.update(vocab_size=600),
        "manifest.json: vocab_size: expected 599",
    ),
    "no tokenizer named": (
        "manifest.json",
        lambda c: c.update(tokenizer_artifact=None),
        "tokenizer_artifact: expected the name",
    ),
    "a tokenizer that is not there": (
        "manifest.json",
        lambda c: c.update(tokenizer_artifact="other"),
        "is missing",
    ),
    "a tokenizer elsewhere": (
        "manifest.json",
        lambda c: c.update(tokenizer_artifact="../../../etc"),
        "tokenizer_artifact: expected the name",
    ),
    "the folder above": (
        "manifest.json",
        lambda c: c.update(tokenizer_artifact=".."),
        "tokenizer_artifact: expected the name",
    ),
    "an absolute path": (
        "manifest.json",
        lambda c: c.update(tokenizer_artifact="/etc"),
        "tokenizer_artifact: expected the name",
    ),
    "a line break": (
        "manifest.json",
        lambda c: c.update(tokenizer_artifact="a\nb"),
        "tokenizer_artifact: expected the name",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), FILE_CHANGES.values(), ids=FILE_CHANGES)
def test_files_that_disagree_or_lead_away_are_refused(
    artifact: Path, name: str, change: Change, message: str
) -> None:
    rewrite(artifact / name, change)
    assert message in refusal(artifact)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "model.pt"])
@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\udcff"])
def test_a_broken_file_is_refused_by_name(artifact: Path, name: str, content: str) -> None:
    (artifact / name).write_bytes(content.encode(errors="surrogateescape"))
    assert name in refusal(artifact)


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "model.pt"])
def test_a_missing_file_is_refused_by_name(artifact: Path, name: str) -> None:
    (artifact / name).unlink()
    assert name in refusal(artifact)


@pytest.mark.parametrize("what", ["model.pt", "manifest.json", "tokenizer"])
def test_a_link_out_of_the_artifacts_is_not_followed(
    artifact: Path, tmp_path: Path, what: str
) -> None:
    inside = artifact / what
    if what == "tokenizer":
        inside = artifact.parent.parent / "tokenizers" / "oracle-bpe-600"
    outside = tmp_path / "outside"
    inside.rename(outside)
    inside.symlink_to(outside)
    assert "out" in refusal(artifact)


def test_a_link_to_the_artifact_itself_is_followed(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(artifact)
    run(tmp_path / "link", tmp_path / "mlx", verify=False)
    assert is_course_folder(tmp_path / "mlx")


# --- The MLX side --------------------------------------------------------------------------------

MLX_CHANGES: dict[str, tuple[str, Change, str]] = {
    "another kind": ("convert.json", lambda c: c.update(source={"kind": "x"}), "not the record"),
    "no kind": (
        "convert.json",
        lambda c: c.pop("source"),
        "does not say what it was converted from",
    ),
    "a later format": ("convert.json", lambda c: c.update(format=2), "not the record"),
    "no manifest": ("convert.json", lambda c: c.pop("manifest"), "manifest: expected an object"),
    "no config": ("convert.json", lambda c: c.update(config=[]), "config: expected an object"),
    "a broken tokenizer": ("convert.json", lambda c: c["tokenizer"].pop("merges"), "merges"),
    "other sizes": ("config.json", lambda c: c.update(num_heads=8), "num_heads"),
    "no vocabulary": ("config.json", lambda c: c.pop("vocab_size"), "vocab_size must be"),
    "endless layers": (
        "convert.json",
        lambda c: c["model_config"].update(num_layers=10**12),
        "num_layers",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), MLX_CHANGES.values(), ids=MLX_CHANGES)
def test_an_mlx_folder_with_another_record_is_refused(
    mlx_folder: Path, name: str, change: Change, message: str
) -> None:
    rewrite(mlx_folder / name, change)
    assert message in refusal(mlx_folder)
    with pytest.raises(UsageError):
        load_folder(mlx_folder)


def test_endless_layers_in_both_files_are_refused_by_the_number_of_tensors(
    mlx_folder: Path,
) -> None:
    rewrite(mlx_folder / "convert.json", lambda c: c["model_config"].update(num_layers=10**12))
    rewrite(mlx_folder / "config.json", lambda c: c.update(num_layers=10**12))
    assert "expected 16000000000005 tensors" in refusal(mlx_folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head_bias", mx.zeros((1,)), "head_bias: expected shape [599]"),
        ("head_bias", mx.zeros((599,), mx.int32), "in mlx.core.int32"),
        ("head_bias", mx.full((599,), float("nan")), "head_bias holds NaN"),
        ("model.layers.0.fc1.weight", mx.zeros((64, 256)), "expected shape [256, 64]"),
        ("model.layers.0.fc1.weight", None, "expected 53 tensors"),
        ("model.extra.weight", mx.zeros((1,)), "found 54"),
    ],
)
def test_mlx_weights_that_are_not_the_model_s_are_refused_by_name(
    mlx_folder: Path, name: str, value: mx.array | None, message: str
) -> None:
    weights = named_arrays(load_folder(mlx_folder)[0].parameters())
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    mx.save_safetensors(str(mlx_folder / "model.safetensors"), weights)
    assert message in refusal(mlx_folder)


def test_a_tensor_under_another_name_is_refused(mlx_folder: Path) -> None:
    weights = named_arrays(load_folder(mlx_folder)[0].parameters())
    weights["head.bias"] = weights.pop("head_bias")
    mx.save_safetensors(str(mlx_folder / "model.safetensors"), weights)
    message = refusal(mlx_folder)
    assert "head.bias is not a parameter" in message
    assert "head_bias is missing" in message


# --- BaseLM --------------------------------------------------------------------------------------

HF_CONFIG = {
    "kind": "huggingface_causal_lm",
    "model_path": "hf_model",
    "tokenizer_path": "hf_tokenizer",
    "torch_dtype": "float32",
    "trust_remote_code": True,
    "base_artifact": "BaseLM",
}
HF_MANIFEST = {
    "name": "BaseLM-SFT",
    "display_name": "BaseLM-SFT",
    "kind": "huggingface_causal_lm",
    "role": "BaseLM-finetuned",
    "module": "module-13",
    "source": "BaseLM",
    "base_artifact": "BaseLM",
    "tokenizer_artifact": None,
    "steps_completed": 120,
    "final_train_loss": 1.0,
    "final_val_loss": 1.5,
    "notes": "",
}


@pytest.fixture
def hf_artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "BaseLM-SFT"
    for name in ("hf_model", "hf_tokenizer"):
        (folder / name).mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    (folder / "manifest.json").write_text(json.dumps(HF_MANIFEST))
    return folder


def test_a_hugging_face_artifact_is_two_folders(hf_artifact: Path) -> None:
    assert kind_of(hf_artifact) is Kind.COURSE_BASE
    expected = (hf_artifact / "hf_model", hf_artifact / "hf_tokenizer")
    assert hf_folders(hf_artifact) == expected
    rewrite(
        hf_artifact / "config.json",
        lambda c: c.update(model_path="artifacts/models/BaseLM-SFT/hf_model", tokenizer_path=None),
    )
    assert hf_folders(hf_artifact) == expected


@pytest.mark.parametrize("path", ["..", "../other", "missing", "/etc/other", "/"])
def test_a_folder_outside_the_artifact_is_not_used(hf_artifact: Path, path: str) -> None:
    rewrite(hf_artifact / "config.json", lambda c: c.update(model_path=path))
    (hf_artifact.parent / "other").mkdir()
    if path == "/":
        assert hf_folders(hf_artifact)[0] == hf_artifact / "hf_model"
        return
    with pytest.raises(UsageError, match=r"missing|outside"):
        hf_folders(hf_artifact)


def test_a_link_out_of_the_artifact_is_not_used(hf_artifact: Path) -> None:
    (hf_artifact / "hf_model").rmdir()
    (hf_artifact.parent / "other").mkdir()
    (hf_artifact / "hf_model").symlink_to(hf_artifact.parent / "other")
    with pytest.raises(UsageError, match="outside"):
        hf_folders(hf_artifact)


def test_the_way_back_of_a_hugging_face_artifact_has_the_course_s_keys(tmp_path: Path) -> None:
    run = {"steps": 7, "settings": {"seed": 1}, "held_out": {"loss": 0.5}}
    moved = {**HF_CONFIG, "model_path": "elsewhere/hf_model"}
    assert write_hf_records(tmp_path, moved, HF_MANIFEST, run) == "BaseLM-DPO"
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest) == list(HF_MANIFEST)
    assert manifest["name"] == manifest["display_name"] == "BaseLM-DPO"
    assert (manifest["steps_completed"], manifest["final_val_loss"]) == (7, 0.5)
    assert manifest["role"] == "BaseLM-finetuned"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == {**HF_CONFIG, "trust_remote_code": False}
    assert list(config) == list(HF_CONFIG)
