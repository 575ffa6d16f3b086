"""Runs that start from PyTorch's own formats, and the way back."""

import json
import shutil
from pathlib import Path

import pytest

from mlx_dpo.convert.conversion import Options, convert
from mlx_dpo.convert.torch_zip.archive import read_torch_zip
from mlx_dpo.errors import UsageError
from mlx_dpo.models.export import left_behind
from mlx_dpo.runs.run import train
from tests.runs.conftest import ORACLE, settings

ARTIFACTS = Path(__file__).parent.parent / "g2c" / "artifacts"
NAME = "models/StoryLM-1M-SFT"


def test_a_course_artifact_trains_directly_and_goes_back_as_its_dpo_artifact(
    workplace: Path,
) -> None:
    shutil.copytree(ARTIFACTS, "artifacts")
    before = {p: p.read_bytes() for p in Path("artifacts").rglob("*") if p.is_file()}
    result = train(settings(model=f"artifacts/{NAME}", max_length=128, out="StoryLM-dpo"))
    assert result is not None
    assert {p: p.read_bytes() for p in Path("artifacts").rglob("*") if p.is_file()} == before

    back = Path("artifacts/models/StoryLM-1M-DPO")
    convert(Path("StoryLM-dpo"), back, Options(), lambda line: None)
    assert json.loads((back / "manifest.json").read_text())["name"] == "StoryLM-1M-DPO"
    old = read_torch_zip(Path("artifacts", NAME, "model.pt"))
    new = read_torch_zip(back / "model.pt")
    assert list(new) == list(old)
    assert new["model_config"] == old["model_config"]
    shapes = [(param.shape, param.dtype) for param in new["params"]]
    assert shapes == [(param.shape, param.dtype) for param in old["params"]]
    assert any((a != b).any() for a, b in zip(new["params"], old["params"], strict=True))


@pytest.mark.parametrize("reference", ["cached", "copy"])
def test_the_converted_form_of_an_artifact_is_kept(workplace: Path, reference: str) -> None:
    shutil.copytree(ARTIFACTS, "artifacts")
    for out in ("a", "b"):
        model = f"artifacts/{NAME}"
        train(settings(model=model, max_length=128, out=out, steps=1, reference=reference))
    assert len(list(Path("runs/.converted").iterdir())) == 1


def test_an_architecture_without_a_rule_trains_from_a_recorded_form(workplace: Path) -> None:
    """Trained as it is, its tensors' original names would be lost."""
    shutil.copytree(ORACLE, "model")
    config = json.loads(Path("model/config.json").read_text())
    # mlx-lm takes it for a llama; nothing here knows its names.
    Path("model/config.json").write_text(json.dumps(config | {"model_type": "iquestcoder"}))
    train(settings(model="model", out="dpo", steps=2))
    convert(Path("dpo"), Path("back"), Options(), lambda line: None)
    assert Path("back/model.safetensors").is_file()


def test_a_link_out_of_the_model_folder_is_not_copied_into_the_result(workplace: Path) -> None:
    shutil.copytree(ORACLE, "model")
    Path("secret").write_text("root:x:0")
    Path("model/tokenizer_x").symlink_to(Path("secret").resolve())
    with pytest.raises(UsageError, match="points outside the folder"):
        train(settings(model="model", out="dpo", steps=2))
    assert not Path("dpo").exists()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_all_that_belongs_to_a_tokenizer_goes_along_and_back(workplace: Path, method: str) -> None:
    shutil.copytree(ORACLE, "model")
    Path("model/additional_chat_templates").mkdir()
    files = (
        "additional_chat_templates/rag.jinja",
        "NOTICE",
        "vocab.bpe",
        "preprocessor_config.json",
    )
    for name in files:
        Path("model", name).write_text("{}")
    Path("model/tokenization_odd.py").touch()
    train(settings(model="model", out="dpo", steps=2, method=method))
    if method == "full":
        convert(Path("dpo"), Path("back"), Options(verify=False), lambda line: None)
    for out in ("dpo", "back") if method == "full" else ("dpo",):
        assert all(Path(out, name).read_text() == "{}" for name in files)
    assert left_behind(Path("model")) == ["tokenization_odd.py"]
    assert not Path("dpo/tokenization_odd.py").exists()
