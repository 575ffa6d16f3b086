"""Reference log-probs on disk are those of exactly the pairs asked for, or none."""

from pathlib import Path

import numpy as np
import pytest

from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs import reference_cache

PAIRS = [PreferenceExample([1, 2], [3], [4, 5]), PreferenceExample([6], [7, 8], [9])]
LOGPROBS = np.array([[-1.5, -2.5], [-3.5, -4.5]], dtype=np.float32)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "cache.safetensors"
    reference_cache.write(file, PAIRS, LOGPROBS)
    found = reference_cache.read(file, PAIRS)
    assert found is not None
    assert np.array_equal(found, LOGPROBS)


def test_other_pairs_or_a_damaged_file_are_not_used(tmp_path: Path) -> None:
    file = tmp_path / "cache.safetensors"
    reference_cache.write(file, PAIRS, LOGPROBS)
    assert reference_cache.read(file, PAIRS[::-1]) is None
    assert reference_cache.read(file, PAIRS[:1]) is None
    file.write_bytes(file.read_bytes()[:-1])
    assert reference_cache.read(file, PAIRS) is None
    assert reference_cache.read(tmp_path / "absent.safetensors", PAIRS) is None


def test_the_name_follows_model_pairs_batch_size_and_path() -> None:
    names = {
        reference_cache.cache_file(model, pairs, batch, path)
        for model in ("a", "b")
        for pairs in (PAIRS, PAIRS[::-1])
        for batch in (1, 4)
        for path in ("plain", "shared-prompt")
    }
    assert len(names) == 16


def test_the_name_follows_the_blas_and_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for blas in ("openblas 1, 1 thread", "openblas 1, 2 threads", ""):
        monkeypatch.setattr(reference_cache, "blas", lambda name=blas: name)
        names.add(reference_cache.cache_file("model", PAIRS, 4, "plain"))
    assert len(names) == 3


def test_ids_that_run_together_are_told_apart() -> None:
    one = [PreferenceExample([1, 23], [4], [5])]
    other = [PreferenceExample([12, 3], [4], [5])]
    assert reference_cache.cache_file("m", one, 1, "plain") != reference_cache.cache_file(
        "m", other, 1, "plain"
    )


def test_a_flipped_bit_in_a_log_prob_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "cache.safetensors"
    reference_cache.write(file, PAIRS, LOGPROBS)
    data = file.read_bytes()
    place = data.index(LOGPROBS.tobytes())
    file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert reference_cache.read(file, PAIRS) is None
