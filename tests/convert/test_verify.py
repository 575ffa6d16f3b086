"""The proof itself: it sees what is wrong, and says what it did not look at."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.convert import verify
from mlx_dpo.convert.conversion import closed_way_back
from mlx_dpo.convert.hf.model import mlx_model
from mlx_dpo.convert.verify import check_logits, check_weights, compare, free_memory, token_batch
from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.models.tokenizer import load_tokenizer
from tests.convert.conftest import GOLDEN, MakeSource, run, tensors_of


@pytest.fixture
def pair(make_source: MakeSource, tmp_path: Path) -> tuple[Path, Path]:
    """A Hugging Face folder and the MLX folder made of it."""
    source = make_source()
    run(source, tmp_path / "mlx", verify=False)
    return source, tmp_path / "mlx"


@pytest.fixture
def torch_says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts an answer in place of torch's, which is taken to be installed."""

    def say(answer: Any) -> None:
        monkeypatch.setattr(verify, "_has_torch", lambda: True)

        def torch_logits(folder: Path, ids: Any) -> Any:
            return answer(folder, ids)

        monkeypatch.setattr(verify, "torch_logits", torch_logits)

    return say


def test_comparison_by_hand() -> None:
    first = np.array([[[0.0, 2.0, -8.0], [1.0, 0.5, 0.0]]], np.float32)
    second = np.array([[[0.0, 2.0, -8.5], [1.0, 1.25, 0.0]]], np.float32)
    found = compare(first, second)
    assert (found.difference, found.largest) == (0.75, 8.0)
    assert (found.num_agreeing, found.num_tokens) == (1, 2)
    assert math.isclose(found.allowed, 16e-4)
    small = first * np.float32(0.1)
    assert math.isclose(compare(small, small).allowed, 2e-4)


@pytest.mark.parametrize(("factor", "passes"), [(0.9, True), (1.1, False), (math.nan, False)])
def test_the_largest_difference_float32_may_have(
    pair: tuple[Path, Path], torch_says: Any, factor: float, passes: bool
) -> None:
    def answer(folder: Path, ids: Any) -> Any:
        logits = verify.mlx_logits(mlx_model(folder), ids)
        logits[0, 0, 0] += factor * 2e-4 * max(1.0, np.abs(logits).max())
        return logits

    torch_says(answer)
    if passes:
        assert "(float32 allows " in check_logits(*pair, None, exact=True, written=True)
        return
    with pytest.raises(MlxDpoError, match="nothing was written") as raised:
        check_logits(*pair, None, exact=True, written=True)
    assert raised.value.exit_code == 1


def test_a_cast_is_reported_and_not_failed(pair: tuple[Path, Path], torch_says: Any) -> None:
    torch_says(lambda folder, ids: verify.mlx_logits(mlx_model(folder), ids) + 0.5)
    said = check_logits(*pair, None, exact=False, written=True)
    assert "largest difference 0.5 of" in said
    assert said.endswith("cast included")


def test_without_torch_it_says_so(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_has_torch", lambda: False)
    assert "not compared with torch: it is not installed" in check_logits(
        *pair, None, exact=True, written=True
    )


def test_where_two_copies_do_not_fit_torch_is_not_asked(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "_has_torch", lambda: True)
    monkeypatch.setattr(verify, "free_memory", lambda: 300_000)
    said = check_logits(*pair, None, exact=True, written=True)
    assert "not compared with torch: two copies in float32 need" in said


def test_an_architecture_torch_has_not(pair: tuple[Path, Path], torch_says: Any) -> None:
    def answer(folder: Path, ids: Any) -> Any:
        raise UsageError("transformers: no such architecture")

    torch_says(answer)
    assert "not compared with torch: transformers: no such" in check_logits(
        *pair, None, exact=True, written=True
    )


def test_a_source_torch_can_not_load_is_reported_and_a_result_fails(
    pair: tuple[Path, Path], torch_says: Any
) -> None:
    def answer(folder: Path, ids: Any) -> Any:
        raise MlxDpoError("transformers reports missing keys: x")

    torch_says(answer)
    said = check_logits(*pair, None, exact=True, written=False)
    assert said.endswith("not compared with torch: transformers reports missing keys: x")
    with pytest.raises(MlxDpoError, match="missing keys: x"):
        check_logits(*pair, None, exact=True, written=True)


def test_free_memory_is_plausible() -> None:
    found = free_memory()
    assert found is None or 2**20 < found < 2**50


@pytest.mark.parametrize("bit", [1, 2**31])
def test_one_flipped_bit_is_found_by_name(pair: tuple[Path, Path], bit: int) -> None:
    source, there = pair
    tensors = tensors_of(there)
    name = "model.layers.0.mlp.up_proj.weight"
    bits = np.array(tensors[name].view(mx.uint32))
    bits[3, 5] ^= bit
    tensors[name] = mx.array(bits).view(mx.float32)
    mx.eval(tensors)
    mx.save_safetensors(str(there / "model.safetensors"), tensors, metadata={"format": "mlx"})
    with pytest.raises(MlxDpoError, match=f"{name}: is not the same"):
        check_weights(source, there, None)


def test_the_batch_is_real_text_of_the_checkpoints_own_tokenizer(pair: tuple[Path, Path]) -> None:
    tokenizer = load_tokenizer(pair[1])
    ids = token_batch(tokenizer, GOLDEN["llama"]["config"])
    assert ids.shape == (2, 64)
    assert "lighthouse keeper counts ships" in tokenizer.decode(ids[0].tolist())
    assert "def area(width" in tokenizer.decode(ids[1].tolist())


@pytest.mark.parametrize(
    ("entries", "length"),
    [
        ({}, 64),
        ({"max_position_embeddings": 20}, 20),
        ({"model_type": "gemma2", "sliding_window": 16}, 16),
        ({"model_type": "gemma3_text", "sliding_window": 16}, 64),
        ({"vocab_size": 7}, 64),
    ],
)
def test_the_batch_stays_within_what_the_model_can(
    pair: tuple[Path, Path], entries: dict[str, Any], length: int
) -> None:
    config = {**GOLDEN["llama"]["config"], **entries}
    for tokenizer in (None, load_tokenizer(pair[1])):
        ids = token_batch(tokenizer, config)
        assert ids.shape == (2, length)
        assert 0 <= ids.min() <= ids.max() < config["vocab_size"]


def test_a_folder_without_tokenizer_is_scored_on_ids(
    make_source: MakeSource, tmp_path: Path, torch_says: Any
) -> None:
    torch_says(lambda folder, ids: verify.mlx_logits(mlx_model(folder), ids))
    source = make_source()
    for file in source.glob("tokenizer*"):
        file.unlink()
    said = run(source, tmp_path / "out")
    assert "128 tokens of token ids in order (there is no tokenizer)" in said
    assert "likeliest token equal at 128 of 128 positions" in said


def test_what_is_known_of_the_config_is_told(make_source: MakeSource, tmp_path: Path) -> None:
    said = run(make_source("phi3", sliding_window=16), tmp_path / "out")
    assert "\nforward pass: phi3, every setting of config.json verified against tr" in said
    assert ", up to 16 tokens (docs/conversion.md of the repository)\n" in said


def test_tensors_the_model_does_not_use_close_the_way_back(
    make_source: MakeSource, tmp_path: Path
) -> None:
    """A vision tower beside a language model: read, left out, and said."""
    source = make_source()
    config = json.loads((source / "config.json").read_text())
    outer = {
        "model_type": "mistral3",
        "text_config": {**config, "model_type": "llama"},
        "vocab_size": config["vocab_size"],
        "tie_word_embeddings": False,
    }
    (source / "config.json").write_text(json.dumps(outer))
    tensors = {f"language_model.{name}": value for name, value in tensors_of(source).items()}
    tensors["vision_tower.patch.weight"] = mx.ones((2, 2))
    mx.eval(tensors)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    said = run(source, tmp_path / "out")
    assert "the way back is closed: vision_tower.patch.weight" in said
    assert closed_way_back(source) == "how mlx-lm changed the tensors of mistral3 is not recorded"
    reason = "mlx-lm's model leaves out vision_tower.patch.weight"
    assert closed_way_back(tmp_path / "out") == reason
    with pytest.raises(UsageError, match=r"not stored: vision_tower\.patch\.weight"):
        run(tmp_path / "out", tmp_path / "back")


def test_torch_is_looked_for_where_it_would_be() -> None:
    assert verify._has_torch() == (importlib.util.find_spec("torch") is not None)
