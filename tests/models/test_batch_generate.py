"""Answers made together are those made one by one."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.models.generate import (
    Ask,
    batches_exactly,
    generate_each,
    generate_ids,
    generate_together,
)
from tests.conftest import TINY_VOCAB

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
ASKS = [
    Ask(ids, seed, temperature)
    for seed, ids in enumerate(PROMPTS)
    for temperature in (0.0, 0.7, 1.5)
]
STOP = {3, 17}


def test_a_batch_of_ragged_prompts_gives_what_each_gives_alone(
    make_model: Callable[[], nn.Module],
) -> None:
    model = make_model()
    alone = generate_each(model, ASKS, stop_ids=STOP, max_tokens=20)
    assert generate_together(model, ASKS, stop_ids=STOP, max_tokens=20) == alone
    assert len({len(ids) for ids in alone}) > 1, "answers of one length would prove little"
    assert all(not STOP & set(ids[:-1]) for ids in alone)
    assert all(ids[-1] in STOP or len(ids) == 20 for ids in alone)


def test_temperature_zero_is_the_likeliest_token(make_model: Callable[[], nn.Module]) -> None:
    model = make_model()
    for ids in PROMPTS:
        expected = generate_ids(model, ids, stop_ids=STOP, max_tokens=9)
        assert generate_together(model, [Ask(ids)], stop_ids=STOP, max_tokens=9) == [expected]


def test_an_answer_follows_from_its_seed_and_not_from_its_place(
    make_model: Callable[[], nn.Module],
) -> None:
    model = make_model()
    mx.random.seed(5)
    expected = mx.random.uniform().item()
    mx.random.seed(5)
    forwards = generate_together(model, ASKS, stop_ids=STOP, max_tokens=20)
    backwards = generate_together(model, ASKS[::-1], stop_ids=STOP, max_tokens=20)
    assert backwards[::-1] == forwards
    other = [ask._replace(seed=ask.seed + 100) for ask in ASKS if ask.temperature]
    assert generate_together(model, other, stop_ids=STOP, max_tokens=20) != forwards
    assert mx.random.uniform().item() == expected, "the run's own random state must not move"


def test_samples_come_as_often_as_their_probability_says(
    make_model: Callable[[], nn.Module],
) -> None:
    model = make_model()
    logits = model(mx.array([PROMPTS[0]]))[0, -1] / 2.0
    expected = np.array(mx.softmax(logits.astype(mx.float32), axis=-1))
    asks = [Ask(PROMPTS[0], seed, 2.0) for seed in range(1000)]
    drawn = [ids[0] for ids in generate_together(model, asks, stop_ids=(), max_tokens=1)]
    shares = np.bincount(drawn, minlength=TINY_VOCAB) / len(drawn)
    spread = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(shares - expected) < 5 * spread).all()


class Blind(nn.Module):
    """A model that pays no heed to where a row begins: what batching must not be trusted with."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner
        self.layers = inner.layers

    def __call__(self, ids: mx.array, cache: object = None) -> mx.array:
        logits: mx.array = self.inner(ids, cache=cache)
        return logits + ids.shape[0] * mx.arange(logits.shape[-1])


def test_a_model_that_cannot_be_batched_is_found_out(make_model: Callable[[], nn.Module]) -> None:
    model = make_model()
    assert batches_exactly(model, PROMPTS)
    assert not batches_exactly(Blind(model), PROMPTS)


@pytest.mark.parametrize("room", [0, 1, 4])
def test_answers_end_where_a_models_positions_end(room: int) -> None:
    from mlx_dpo.models.course import CourseArgs, CourseModel

    mx.random.seed(0)
    model = CourseModel(CourseArgs(TINY_VOCAB, 16, 2, 2, 7 + room, 32))
    asks = [Ask(ids) for ids in PROMPTS]
    found = generate_together(model, asks, stop_ids=(), max_tokens=8)
    assert [len(ids) for ids in found] == [min(8, 7 + room - len(ids)) for ids in PROMPTS]
    assert found == generate_each(model, asks, stop_ids=(), max_tokens=8)
