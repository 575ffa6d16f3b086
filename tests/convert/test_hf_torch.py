"""Conversion beside transformers itself: what it saves, loads and generates."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.convert.hf.model import mlx_model
from mlx_dpo.convert.verify import TOLERANCE, mlx_logits
from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.models.folder import load_folder
from mlx_dpo.models.generate import Request, generate_each
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.run import train
from tests.convert.conftest import run
from tests.convert.make_golden import IDS
from tests.convert.tiny import CASES, save_with_transformers
from tests.runs.conftest import ROWS

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch", reason="`make test-torch` runs it")

NUM_NEW = 24


def load(folder: Path) -> Any:
    """The folder in transformers, which must miss nothing and find nothing it can't place."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    return model.eval()


def logits_of(model: Any) -> Any:
    with torch.no_grad():
        return model.float()(torch.from_numpy(IDS)).logits.numpy()


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """The likeliest token each time, by hand: nothing a generation config could change."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(NUM_NEW):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def assert_same_parameters(found: Any, expected: Any) -> None:
    theirs = dict(expected.named_parameters())
    ours = dict(found.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("case", CASES)
def test_both_ways(tmp_path: Path, case: str) -> None:
    original = save_with_transformers(case, tmp_path / "source")
    said = run(tmp_path / "source", tmp_path / "mlx") + run(tmp_path / "mlx", tmp_path / "back")
    assert said.count("(float32 allows ") == 2
    assert said.count("likeliest token equal at 128 of 128 positions") == 2
    found = load(tmp_path / "back")
    assert_same_parameters(found, original)
    expected = logits_of(original)
    np.testing.assert_array_equal(logits_of(found), expected)
    ours = mlx_logits(mlx_model(tmp_path / "mlx"), IDS)
    allowed = TOLERANCE * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(ours, expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("case", CASES)
def test_without_a_record_transformers_loads_the_same_model(tmp_path: Path, case: str) -> None:
    original = save_with_transformers(case, tmp_path / "source")
    run(tmp_path / "source", tmp_path / "mlx", verify=False)
    (tmp_path / "mlx" / "convert.json").unlink()
    run(tmp_path / "mlx", tmp_path / "back")
    found = load(tmp_path / "back")
    assert_same_parameters(found, original)
    np.testing.assert_array_equal(logits_of(found), logits_of(original))


@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "phi3"])
def test_bfloat16_in_shards(tmp_path: Path, case: str) -> None:
    save_with_transformers(case, tmp_path / "float32")
    half = load(tmp_path / "float32").to(torch.bfloat16)
    half.save_pretrained(tmp_path / "source", max_shard_size="30KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 2
    run(tmp_path / "source", tmp_path / "mlx", max_shard_bytes=40_000)
    said = run(tmp_path / "mlx", tmp_path / "back", max_shard_bytes=40_000)
    assert "bfloat16" in said
    found = load(tmp_path / "back")
    assert found.dtype == torch.bfloat16
    assert_same_parameters(found, half)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pytorch_bin(tmp_path: Path, is_zip: bool, dtype: Any) -> None:
    original = save_with_transformers("gpt2", tmp_path / "source").to(dtype)
    (tmp_path / "source" / "model.safetensors").unlink()
    torch.save(
        original.state_dict(),  # holds the tied embeddings twice
        tmp_path / "source" / "pytorch_model.bin",
        _use_new_zipfile_serialization=is_zip,
    )
    run(tmp_path / "source", tmp_path / "mlx")
    run(tmp_path / "mlx", tmp_path / "back")
    assert_same_parameters(load(tmp_path / "back"), original)


def test_a_legacy_pickle_executes_nothing(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    save_with_transformers("llama", tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    for is_zip in (True, False):
        torch.save(
            {"model.norm.weight": Evil()},
            tmp_path / "source" / "pytorch_model.bin",
            _use_new_zipfile_serialization=is_zip,
        )
        with pytest.raises(UsageError) as raised:
            run(tmp_path / "source", tmp_path / "mlx")
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "ran").exists()
        assert not (tmp_path / "mlx").exists()


def test_a_lost_rotary_base_fails_the_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What mlx-lm does by itself with a config of transformers 5: equal weights, other logits."""
    save_with_transformers("llama", tmp_path / "source")
    monkeypatch.setattr("mlx_dpo.models.dialects.normalised", lambda _: {})
    with pytest.raises(MlxDpoError, match="nothing was written") as raised:
        run(tmp_path / "source", tmp_path / "mlx")
    assert raised.value.exit_code == 1
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("case", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("first", [True, False], ids=["converted first", "trained as it is"])
def test_a_torch_folder_becomes_a_torch_dpo_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, first: bool
) -> None:
    """Both sides generate the same tokens from what was trained."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.json").write_text(json.dumps(ROWS))
    original = save_with_transformers(case, Path("sft"))
    if first:
        run(Path("sft"), Path("mlx"))
    result = train(
        RunConfig(
            model="mlx" if first else "sft",
            data="pairs.json",
            learning_rate=1e-3,
            warmup_steps=0,
            batch_size=2,
            steps=6,
            max_length=64,
            run_dir="run",
            out="dpo",
        )
    )
    assert result is not None
    run(Path("dpo"), Path("torch-dpo"))
    theirs = load(Path("torch-dpo"))
    ours, tokenizer = load_folder(Path("dpo"))
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(theirs.parameters(), original.parameters(), strict=True)
    ]
    assert max(moved) > 1e-4
    for text in ("Tell me about the otter.", "A lantern"):
        prompt = tokenizer.encode(text)
        found = generate_each(ours, [Request(prompt)], stop_ids=(), max_tokens=NUM_NEW)[0]
        assert found == greedy(theirs, prompt)
