"""export --to as a person types it: every form, what proves it, what is refused."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from mlx_dpo.cli.ways_out import place_of
from mlx_dpo.convert.sources import Source, load_source, locate
from mlx_dpo.models.folder import load_model
from tests.cli.conftest import run
from tests.cli.test_cli_export import IDS, adapter_logits, logits
from tests.runs.conftest import ORACLE

GPT2 = ORACLE.parents[1] / "gpt2" / "model"
Capture = pytest.CaptureFixture[str]
needs_gguf = pytest.mark.skipif(not find_spec("gguf"), reason="GGUF needs the package gguf")


@pytest.fixture(autouse=True)
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(workplace / "home"))
    return workplace


@needs_gguf
def test_an_adapter_becomes_one_gguf_file_that_is_scored(large: Path, capsys: Capture) -> None:
    words = ("export", str(large), "tiny.gguf", "--to", "gguf", "--quantize", "8")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    margin, kept, moved, wrote = out.splitlines()
    assert margin.startswith("margin  +")
    assert kept.endswith(" of the margin")
    assert not moved.startswith("moved   log-probs by 0.000 nats")
    assert wrote == "wrote   tiny.gguf  (8 bits)"
    assert [path.name for path in Path().iterdir() if "tiny" in path.name] == ["tiny.gguf"]


@needs_gguf
def test_a_gguf_file_that_keeps_too_little_is_not_written(
    large: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("mlx_dpo.insight.proof.ENOUGH", 1.01)
    words = ("export", str(large), "four.gguf", "--to", "gguf", "--quantize", "4")
    code, out, err = run(capsys, *words)
    assert code == 1
    assert "kept    " in out
    assert "four.gguf: not written: 4 bits keeps " in err
    assert not [path for path in Path().iterdir() if "four" in path.name]


@needs_gguf
def test_what_is_not_rounded_is_compared_bit_by_bit(capsys: Capture) -> None:
    words = ("export", str(ORACLE), "whole.gguf", "--to", "gguf", "--dtype", "float32")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "tensors 38 of 38 are the model's, bit by bit",
        "wrote   whole.gguf  (float32)",
    ]
    code, _, err = run(capsys, *words)
    assert (code, "exists; pass --overwrite" in err) == (2, True)
    assert run(capsys, *words, "--overwrite")[0] == 0
    Path("whole.gguf").write_bytes(b"GGUF of somebody else")
    code, _, err = run(capsys, *words, "--overwrite")
    assert (code, "exists and no export made it" in err) == (2, True)
    assert Path("whole.gguf").read_bytes() == b"GGUF of somebody else"


@needs_gguf
def test_ollama_gets_a_file_and_a_modelfile(large: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "export", str(large), "for-ollama", "--to", "ollama")
    assert (code, err) == (0, "")
    assert out.endswith("Next:\n  ollama create for-ollama -f for-ollama/Modelfile\n")
    names = ["Modelfile", "README.md", "dpo.json", "model.gguf"]
    assert sorted(path.name for path in Path("for-ollama").iterdir()) == names
    text = Path("for-ollama/Modelfile").read_text()
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{ range .Messages }}')
    assert text.endswith('PARAMETER stop "<|end|>"\n')
    assert json.loads(Path("for-ollama/dpo.json").read_text())["export"]["to"] == "ollama"
    assert "ollama run for-ollama" in Path("for-ollama/README.md").read_text()
    code, out, _ = run(capsys, "push", "for-ollama", "ada/tiny", "--dry-run")
    assert [line.split()[0] for line in out.splitlines()[1:5]] == [*names[:1], *names[1:]]


def test_lm_studio_is_given_a_folder_where_it_looks(here: Path, capsys: Capture) -> None:
    code, out, _ = run(capsys, "export", str(ORACLE), "me/tiny", "--to", "lm-studio")
    assert code == 0
    place = here / "home" / ".lmstudio" / "models" / "me" / "tiny"
    assert f"wrote   {place}  (bfloat16)" in out
    assert logits(str(place)).shape == (1, 7, 512)
    Path("folder").mkdir()
    for name in ("folder/tiny", "./new/tiny", str(here / "other" / "tiny")):
        assert place_of(name, "lm-studio") == Path(name)
    assert run(capsys, "export", str(ORACLE), "folder/tiny", "--to", "lm-studio")[0] == 0
    assert Path("folder/tiny/config.json").is_file()


def test_pytorch_gets_the_sum_of_model_and_adapter(large: Path, capsys: Capture) -> None:
    words = ("export", str(large), "for-torch", "--to", "torch", "--dtype", "float32")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert "of the margin" in out
    assert "weights: there and back is bit-identical, all 38 tensors" in out
    assert "scratch" not in out
    assert 'from_pretrained("for-torch")' in Path("for-torch/README.md").read_text()
    assert json.loads(Path("for-torch/dpo.json").read_text())["export"]["to"] == "torch"
    code, out, _ = run(capsys, "push", "for-torch", "ada/tiny", "--dry-run")
    assert (code, "model.safetensors" in out, "left" in out) == (0, True, False)
    found = np.array(load_model(Path("for-torch"))(IDS))
    assert np.abs(found - adapter_logits(large)).max() <= 1e-5
    assert run(capsys, *words)[0] == 2


def test_a_whole_model_is_written_as_it_is(capsys: Capture) -> None:
    for to, dtype in (("mlx", "float32"), ("torch", "float32"), ("lm-studio", "bfloat16")):
        code, out, _ = run(capsys, "export", str(ORACLE), f"./out-{to}/model", "--to", to)
        assert code == 0
        assert f"wrote   out-{to}/model  ({dtype})\n" in out
    assert np.array_equal(logits("out-mlx/model"), logits(str(ORACLE)))


def test_mxfp4_is_packed_in_its_own_way(capsys: Capture) -> None:
    words = ("export", str(ORACLE), "mx", "--to", "mlx", "--quantize", "mxfp4", "--force")
    assert run(capsys, *words)[0] == 0
    packing = json.loads(Path("mx/config.json").read_text())["quantization"]
    assert packing == {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    found = load_source(Source(Path("mx"), None, Path("mx")))(IDS)
    expected = load_source(locate(ORACLE))(IDS)
    assert 0.05 < float(np.abs(np.array(found - expected)).max()) < 4


def test_ollama_is_given_safetensors_of_a_kind_that_it_imports(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("mlx_dpo.convert.gguf.ollama.IMPORTED", ("llama",))
    words = ("export", str(ORACLE), "for-ollama", "--to", "ollama")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert out.endswith("Next:\n  ollama create for-ollama -f for-ollama/Modelfile\n")
    text = Path("for-ollama/Modelfile").read_text()
    assert text.startswith('FROM .\nTEMPLATE """{{ range .Messages }}')
    assert Path("for-ollama/model.safetensors").is_file()
    code, _, err = run(capsys, *words, "--overwrite", "--quantize", "4")
    assert (code, "from a folder of safetensors" in err) == (2, True)


@needs_gguf
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((str(ORACLE), "out.bin", "--to", "gguf"), "a name that ends in .gguf"),
        ((str(ORACLE), "out.gguf", "--to", "gguf", "--quantize", "6"), "makes 4 (Q4_0) and 8"),
        ((str(ORACLE), "out", "--to", "ollama", "--quantize", "mxfp4"), "makes 4 (Q4_0) and 8"),
        ((str(ORACLE), "out", "--to", "torch", "--quantize", "4"), "leave --quantize out"),
        ((str(GPT2), "out.gguf", "--to", "gguf", "--force"), "not written of 'gpt2' here"),
        ((str(ORACLE), "out.gguf", "--to", "gguf", "--quantize", "8"), "pass --force"),
        ((str(ORACLE), "out", "--to", "pdf"), "'pdf' is not one of"),
    ],
)
def test_a_form_that_can_not_be_made_is_refused_by_name(
    words: tuple[str, ...], message: str, capsys: Capture
) -> None:
    code, _, err = run(capsys, "export", *words)
    assert code == 2
    assert message in err
    assert not list(Path().glob("out*"))


def test_without_the_package_it_is_said_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    code, out, err = run(capsys, "export", str(ORACLE), "out.gguf", "--to", "gguf")
    assert (code, out) == (2, "")
    assert "GGUF needs the package gguf: pip install" in err
