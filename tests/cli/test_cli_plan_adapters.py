"""`mlx_dpo plan` for adapters: quantised models, also without their weights, and advice."""

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import run

pytestmark = pytest.mark.usefixtures("workplace")
ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "memory" / "configs"
DATA = ["--data", "pairs.json", "--batch-size", "1"]


def without_weights(name: str, **changes: int) -> Path:
    """A folder as a download of config and tokenizer alone leaves it."""
    folder = Path(name)
    folder.mkdir()
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ROOT / "checkpoints" / "tiny-sft" / file, folder / file)
    return folder


def test_a_quantised_model_is_planned_without_its_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = without_weights("llama-3.1-8b-4bit")
    args = ["--model", str(folder), *DATA, "--lora-rank", "8", "--checkpoint-layers"]
    code, out, _ = run(capsys, "plan", *args)
    assert code == 0
    assert "(8051.2 M parameters" in out
    assert re.search(r"weights +4\.\d\d GiB  frozen", out)
    assert re.search(r"adapters +\d\d\.\d MiB  rank 8, all, all blocks, float32", out)
    peak = re.search(r"on a GPU +(\d\.\d\d) GiB", out)
    assert peak is not None
    assert float(peak[1]) < 5
    verdicts = [line.split()[-1] for line in out.splitlines() if re.match(r" +\d+ GB ", line)]
    assert verdicts == ["tight", "fits", "fits", "fits"]
    assert not list(folder.glob("*.safetensors"))


def test_only_config_and_tokenizer_of_a_hub_model_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    folder = without_weights("qwen3-4b-4bit", num_hidden_layers=2)

    def download(name: str, patterns: list[str], kind: str = "model") -> Path:
        asked.extend(patterns)
        return folder

    monkeypatch.setattr("mlx_dpo.convert.sources.download", download)
    code, out, _ = run(capsys, "plan", "--json", "--model", "someone/a-model", *DATA)
    assert code == 0
    found = json.loads(out)
    assert found["settings"]["method"] == "lora"
    assert found["settings"]["dtype"] == "bfloat16"
    assert "*.model" in asked
    assert not any("safetensors" in pattern or "bin" in pattern for pattern in asked)
