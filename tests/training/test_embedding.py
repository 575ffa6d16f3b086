"""Embeddings that gather no id twice: exact forwards, and gradients that are equal in every run."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.checkpointing import checkpointed
from mlx_dpo.training.embedding import gathered_once, repeats
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from tests import gpulike
from tests.training import architectures
from tests.training.test_paths import PAIRS, logprobs_and_gradient

LENGTH = 64
# Each id is met many times, in every forward, and positions in every row.
REPEATED = [PreferenceExample([5, 6, 7, 5][: n % 4 + 1] * n, [5, 6] * n, [6] * n) for n in (3, 5)]
PATHS: list[ScoringPath] = [
    PlainPath(LENGTH, 0),
    FastPath(LENGTH, 0),
    FastPath(LENGTH, 0, checkpoint=True),
    FastPath(LENGTH, 0, share_prompts=False),
]


@pytest.fixture
def atomics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of gathers are summed in another order each time."""
    monkeypatch.setattr(mx.array, "__getitem__", gpulike.gather)
    monkeypatch.setattr(mx, "take", gpulike.take)


@given(st.lists(st.integers(0, 9), max_size=60))
def test_no_index_comes_twice_and_each_position_gets_its_id(ids: list[int]) -> None:
    plan = repeats(np.array(ids, np.int32))
    rows = plan.distinct
    for appended in plan.doublings:
        assert len(set(appended.tolist())) == len(appended)
        rows = np.concatenate([rows, rows[appended]])
    assert sorted(plan.order.tolist()) == list(range(len(ids)))
    assert rows[plan.order].tolist() == ids


@given(st.integers(1, 500))
def test_doublings_are_few(times: int) -> None:
    assert len(repeats(np.zeros(times, np.int32)).doublings) == (times - 1).bit_length()


def _embedding() -> nn.Embedding:
    mx.random.seed(0)
    return nn.Embedding(11, 6)


class Trunk(nn.Module):
    """Nothing but an embedding."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding = _embedding()

    def __call__(self, ids: mx.array) -> mx.array:
        rows: mx.array = self.embedding(ids)
        return rows


@pytest.mark.parametrize("known", [True, False])
def test_the_forward_is_exact_and_the_gradient_is_the_sum_over_positions(known: bool) -> None:
    rng = np.random.default_rng(0)
    model = Trunk()
    batch = [mx.array(rng.integers(0, 7, shape).astype(np.int32)) for shape in ((3, 9), (2, 40))]
    weights = [rng.normal(size=(*ids.shape, 6)).astype(np.float32) for ids in batch]

    def weighted() -> tuple[mx.array, list[mx.array]]:
        once = gathered_once(model, batch if known else ())
        rows = [once(ids) for ids in batch]
        sums = [(r * mx.array(w)).sum() for r, w in zip(rows, weights, strict=True)]
        return mx.stack(sums).sum(), rows

    (_, rows), grads = nn.value_and_grad(model, weighted)()
    expected = np.zeros((11, 6))  # float64
    for ids, found, weight in zip(batch, rows, weights, strict=True):
        assert mx.array_equal(found, model.embedding.weight[ids])
        np.add.at(expected, np.array(ids), weight)
    np.testing.assert_allclose(grads["embedding"]["weight"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("atomics")
def test_the_emulator_sums_a_plain_gather_in_another_order_each_time() -> None:
    ids = mx.array(np.arange(300, dtype=np.int32) % 3)
    weights = mx.random.normal((300, 6))
    model = Trunk()
    found = {
        np.array(mx.grad(lambda w: (w[ids] * weights).sum())(model.embedding.weight)).tobytes()
        for _ in range(5)
    }
    assert len(found) > 1
    once = {
        np.array(
            nn.value_and_grad(model, lambda: (gathered_once(model)(ids) * weights).sum())()[1][
                "embedding"
            ]["weight"]
        ).tobytes()
        for _ in range(5)
    }
    assert len(once) == 1


@pytest.mark.usefixtures("atomics")
@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.name} {path.checkpoint}")
@pytest.mark.parametrize("name", ["llama", "gpt2", architectures.COURSE])
def test_gradients_are_equal_in_every_run_learned_positions_too(
    name: str, path: ScoringPath
) -> None:
    model = architectures.make(name)
    pairs = [*REPEATED, *PAIRS[:5]]
    first = logprobs_and_gradient(path, model, pairs)[1]
    for _ in range(3):
        again = logprobs_and_gradient(path, model, pairs)[1]
        assert [n for n in first if not mx.array_equal(first[n], again[n])] == []


def test_the_ids_of_a_batch_are_gathered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedding's gradient is as large as the embedding: one for a batch, not one a forward."""
    gathered: list[int] = []
    right: Any = nn.Embedding.__call__

    def counted(self: nn.Embedding, ids: mx.array) -> mx.array:
        gathered.append(ids.size)
        rows: mx.array = right(self, ids)
        return rows

    monkeypatch.setattr(nn.Embedding, "__call__", counted)
    path = FastPath(LENGTH, 0)
    layout = path.layout(PAIRS)
    assert len(layout.context_groups) + len(layout.row_groups) > 2
    path(architectures.make("llama"), PAIRS)
    distinct = {id for pair in PAIRS for ids in pair for id in ids}
    assert len(gathered) == 1
    assert gathered[0] <= len(distinct | {0})


@pytest.mark.parametrize("name", [*architectures.EXTRA, architectures.COURSE])
def test_the_model_and_its_parameters_are_left_as_they_were(name: str) -> None:
    model = architectures.make(name)
    ids = mx.array([[5, 6, 5, 5, 7]])
    expected = model(ids)  # which leaves other arrays in Gemma 3n
    before = named_arrays(model.parameters())
    once = gathered_once(checkpointed(model))
    assert mx.allclose(once(ids), expected, rtol=1e-5, atol=1e-6)
    assert all(not isinstance(value, nn.Module) for value in vars(model).values())
    after = named_arrays(once.parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_positions_beyond_the_table_read_its_last_row() -> None:
    """A batch is padded to more positions than gpt2 has: past the end anything may be read."""
    model = nn.Module()
    model.positions = nn.Embedding(4, 3)
    rows = gathered_once(model).positions(mx.arange(6))
    assert mx.array_equal(rows, model.positions.weight[mx.array([0, 1, 2, 3, 3, 3])])
