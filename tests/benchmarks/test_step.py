"""The benchmarks measure what they say."""

from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from benchmarks import families, profile, step, whole_run, workload
from benchmarks.kernels import Computation
from mlx_dpo.memory.recorder import record
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


SHAPE = workload.Shape(hidden=64, layers=2, heads=2, kv_heads=1, mlp=128, vocabulary=512)
# Of a small step: products over those needed, MB moved, kernels, waits. They carry over to a Mac.
# If a change makes a step cheaper, write the new counts; if dearer, say in the commit why.
AT_MOST = {
    "padded to the batch (plain path)": (3.32, 1090, 1450, 3),
    "+ prompt read once": (0.973, 380, 1980, 2),
    "as a run takes it": (0.973, 382, 2060, 29),
}


def test_a_step_computed_kernel_by_kernel_is_the_step() -> None:
    model = workload.make_model(SHAPE)
    (pairs,) = workload.make_batches(SHAPE, 1)
    fast, reference = step.contenders()[-1], mx.zeros((2, 2))
    adamw = optim.AdamW(learning_rate=0.1, bias_correction=True)
    recording = record(
        lambda r: step.update(fast, model, adamw, pairs[:2], reference, r.evaluate), model, adamw
    )
    weights = cast("list[Any]", tree_flatten(model.parameters()))
    inputs = [array for _, array in weights]
    inputs += [mx.zeros(array.shape) for array in recording.graph.inputs[len(inputs) :]]
    computation = Computation(recording, inputs)
    computation.run(lambda event, node, seconds: None)
    step.update(fast, model, adamw, pairs[:2], reference)
    for array, (name, expected) in zip(
        recording.parameters, cast("list[Any]", tree_flatten(model.parameters())), strict=True
    ):
        assert mx.allclose(computation.values[array], expected, rtol=1e-4, atol=1e-5), name


def test_every_kernel_of_a_step_belongs_to_a_part() -> None:
    model = workload.make_model(SHAPE)
    (pairs,) = workload.make_batches(SHAPE, 1)
    parts = profile.parts_of_step(model, SHAPE, pairs[:2])
    counts = step.counts_of_run(model, pairs[:2])
    assert sum(part.kernels for part in parts.values()) == counts.kernels
    assert sum(part.flops for part in parts.values()) == counts.flops
    assert set(parts) == set(profile.PARTS) - {profile.BUILDING}


def test_a_step_asks_no_more_of_a_machine_than_it_did() -> None:
    model = workload.make_model(SHAPE)
    (pairs,) = workload.make_batches(SHAPE, 1)
    layers = workload.num_parameters(model) - SHAPE.vocabulary * SHAPE.hidden
    floor = workload.floor_flops(pairs, SHAPE, layers)
    found = {
        row.name: step.counts_of(row, model, pairs)
        for row in step.contenders()
        if row.name in AT_MOST
    }
    found["as a run takes it"] = step.counts_of_run(model, pairs)
    for name, (products, moved, kernels, waits) in AT_MOST.items():
        counts = found[name]
        figures = (counts.flops / floor, counts.bytes_moved / 1e6, counts.kernels, counts.waits)
        within = [a <= b for a, b in zip(figures, (products, moved, kernels, waits), strict=True)]
        assert all(within), f"{name}: {figures}"


def test_a_phase_of_a_run_lasts_until_the_next_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_run, "now", iter([0, 1, 3, 6, 10, 15, 21, 28]).__next__)
    watch = whole_run.Stopwatch()
    watch.working("loading the model")
    watch.path_chosen(None)
    watch.working("answering 5 prompts before training")
    watch.working("self-check: scoring the largest batch")
    watch.working("making the first step")
    watch.working("scoring the held-out pairs")
    watch.evaluated(0, {})
    spent = watch.seconds
    assert spent == {
        **dict.fromkeys(whole_run.PHASES, 0),
        **{"loading": 3, "reference pass": 3, "answers": 4, "self-checks": 5, "training": 6},
        "evaluation": 7,
    }
    rows = dict(whole_run.rows_of({"lora": spent}))
    assert (rows["all but training"], rows["all"]) == ("22.0", "28.0")


def test_a_family_is_measured_on_the_path_that_a_run_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    monkeypatch.setattr(families, "SIZES", sizes)
    monkeypatch.setitem(families.FAMILIES, "lfm2", {})
    name, path, *figures = families.measure("lfm2", [families.pairs(4)])
    assert (name, path) == ("lfm2", "shared-prompt")
    assert all(float(figure) >= 0 for figure in figures)
