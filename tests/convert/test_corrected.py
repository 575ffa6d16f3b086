"""What mlx-lm alone computes otherwise than transformers, whose logits are stored."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.convert.verify import TOLERANCE, token_batch
from mlx_dpo.errors import UsageError
from mlx_dpo.models.folder import check_ids, load_model
from mlx_dpo.models.rotary import LongRope
from tests.convert.make_golden import COLUMNS, IDS, POSITIONS, SHORT
from tests.convert.tiny import CORRECTED, write_folder

STORED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "corrected.json").read_text(encoding="utf-8")
)


def folder_of(case: str, folder: Path, **entries: Any) -> Path:
    config = STORED[case]["config"]
    return write_folder(folder, {**config, **entries}, STORED[case]["tensors"])


def sample(model: Any, ids: Any) -> Any:
    return np.array(model(mx.array(ids)).astype(mx.float32))[0, POSITIONS, COLUMNS]


def largest_difference(case: str, model: Any) -> float:
    pairs = ((IDS, "logits"), (SHORT, "short"))
    return max(float(np.abs(sample(model, ids) - STORED[case][key]).max()) for ids, key in pairs)


def test_the_stored_numbers_are_of_these_models() -> None:
    assert list(STORED) == list(CORRECTED)


@pytest.mark.parametrize("case", CORRECTED)
def test_mlx_computes_what_torch_computed(tmp_path: Path, case: str) -> None:
    model = load_model(folder_of(case, tmp_path / "source"))
    assert largest_difference(case, model) <= TOLERANCE * max(1.0, STORED[case]["largest"])


@pytest.mark.parametrize("case", [case for case in CORRECTED if not case.startswith("gemma3")])
def test_the_stored_numbers_tell_a_model_without_its_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr("mlx_dpo.models.dialects.corrections_of", lambda kind, config: [])
    model = load_model(folder_of(case, tmp_path / "source"))
    assert largest_difference(case, model) > 1e-3 * STORED[case]["largest"]


def test_the_older_spelling_is_the_same_model(tmp_path: Path) -> None:
    case = "phi3:longrope"
    rope = dict(STORED[case]["config"]["rope_parameters"])
    older = {"rope_theta": rope.pop("rope_theta"), "rope_parameters": None}
    older["rope_scaling"] = {**rope, "type": "su"}
    older["rope_scaling"].pop("rope_type")
    model = load_model(folder_of(case, tmp_path / "source", **older))
    assert largest_difference(case, model) <= TOLERANCE * STORED[case]["largest"]


def test_longrope_takes_its_factors_by_the_end_of_the_text() -> None:
    short, long = mx.array([1.0, 10.0]), mx.array([3.0, 90.0])
    rope = LongRope(4, short, long, original=8, scale=1.0)
    x = mx.random.normal((2, 1, 3, 4))

    def rotated(freqs: mx.array, offset: Any) -> Any:
        found = mx.fast.rope(
            x, 4, traditional=False, base=None, scale=1.0, offset=offset, freqs=freqs
        )
        return np.array(found)

    np.testing.assert_array_equal(rope(x, 5), rotated(short, 5))
    np.testing.assert_array_equal(rope(x, 6), rotated(long, 6))
    starts = mx.array([0, 5])
    np.testing.assert_array_equal(rope(x, starts), rotated(short, starts))
    starts = mx.array([0, 6])
    np.testing.assert_array_equal(rope(x, starts), rotated(long, starts))


def test_rows_beyond_the_short_factors_are_refused(tmp_path: Path) -> None:
    folder = folder_of("phi3:longrope", tmp_path / "source")
    model = load_model(folder)
    check_ids(model, folder, largest_id=9, longest=32)
    with pytest.raises(UsageError, match="pass --max-length 32"):
        check_ids(model, folder, largest_id=9, longest=33)


def test_text_is_measured_by_the_language_model_inside() -> None:
    config = {"text_config": {"vocab_size": 40, "max_position_embeddings": 9}}
    ids = token_batch(None, config)
    assert ids.shape == (2, 9)
    assert ids.max() < 40
