"""The benchmarks measure what they say."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from benchmarks import families, step, workload
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import PlainPath


def test_pairs_are_the_same_every_time_and_within_their_bounds() -> None:
    shape = workload.SHAPES["A"]
    (pairs,) = workload.make_batches(shape, 1)
    assert pairs == workload.make_batches(shape, 2)[0]
    for prompt, chosen, rejected in pairs:
        assert 64 <= len(prompt) <= 256
        assert 32 <= len(chosen) <= 128
        assert 32 <= len(rejected) <= 128


def test_the_floor_is_the_count_by_hand() -> None:
    shape = workload.Shape(hidden=2, layers=3, heads=1, kv_heads=1, mlp=4, vocabulary=5)
    pair = PreferenceExample([1] * 4, [2] * 2, [3] * 6)
    layers = 6 * 10 * (4 - 1 + 2 + 6)
    output = 6 * 5 * 2 * (2 + 6)
    attention = 3 * 4 * (4 * 4 / 2 + 2 * (4 + 1) + 6 * (4 + 3)) * 2 * 3
    assert workload.floor_flops([pair], shape, 10) == pytest.approx(layers + output + attention)


def test_the_naive_way_scores_what_the_plain_path_scores(
    make_model: Callable[[], nn.Module], ragged_pairs: list[PreferenceExample]
) -> None:
    model = make_model()
    found = np.array(step.naive(model, ragged_pairs[:2]))
    expected = np.array(PlainPath(workload.MAX_SEQ_LEN, 0)(model, ragged_pairs[:2]))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    loss, _ = step.gradient(model, step.naive, ragged_pairs[:2], mx.array(found))
    assert float(loss) == pytest.approx(np.log(2), abs=1e-6)


def test_a_family_is_measured_on_the_path_that_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    monkeypatch.setattr(families, "SIZES", sizes)
    monkeypatch.setitem(families.FAMILIES, "lfm2", {})
    name, path, *figures = families.measure("lfm2", [families.pairs(4)])
    assert (name, path) == ("lfm2", "shared-prompt")
    assert all(float(figure) >= 0 for figure in figures)
