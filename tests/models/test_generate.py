"""Completions, against the definition: the likeliest next token, again and again; in any batch."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.sample_utils import make_sampler

from mlx_dpo.convert.sources import load_folder
from mlx_dpo.models import generate
from mlx_dpo.models.course import CourseArgs, CourseModel
from mlx_dpo.models.generate import (
    Request,
    answer_all,
    batches_exactly,
    complete,
    generate_each,
    generate_together,
)
from mlx_dpo.preferences.chat import chat_format
from tests import oracle
from tests.conftest import TINY_VOCAB

PROMPT = [5, 40, 7, 21]
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
REQUESTS = [
    Request(ids, seed, temperature)
    for seed, ids in enumerate(PROMPTS)
    for temperature in (0.0, 0.7, 1.5)
]
STOP = {3, 17}


@pytest.fixture(scope="module")
def model(make_model: Callable[[], nn.Module]) -> nn.Module:
    return make_model()


# --- One prompt ----------------------------------------------------------------------------------


def greedy_without_cache(model: nn.Module, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(model(mx.array([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("prompt", [PROMPT, [9], list(range(30))], ids=["short", "one", "long"])
def test_greedy_takes_the_likeliest_token_each_time(model: nn.Module, prompt: list[int]) -> None:
    found = generate_each(model, [Request(prompt)], stop_ids=(), max_tokens=12)[0]
    assert found == greedy_without_cache(model, prompt, 12)


def test_the_answer_ends_with_the_first_stop_token(model: nn.Module) -> None:
    free = greedy_without_cache(model, PROMPT, 12)
    stop = free[5]
    found = generate_each(model, [Request(PROMPT)], stop_ids={stop, 1000}, max_tokens=12)[0]
    assert found == free[: free.index(stop) + 1]


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_the_answer_is_no_longer_than_allowed(model: nn.Module, max_tokens: int) -> None:
    found = generate_each(model, [Request(PROMPT)], stop_ids=(), max_tokens=max_tokens)[0]
    assert len(found) == max_tokens


def test_sampling_is_mlx_lm_s_with_the_random_state_seeded(model: nn.Module) -> None:
    mx.random.seed(3)
    tokens = generate_step(mx.array(PROMPT), model, max_tokens=12, sampler=make_sampler(temp=0.8))
    expected = [int(token) for token, _ in tokens]
    request = Request(PROMPT, 3, 0.8)
    assert generate_each(model, [request], stop_ids=(), max_tokens=12) == [expected]


def test_sampling_follows_from_the_seed(model: nn.Module) -> None:
    def sample(seed: int) -> list[int]:
        return generate_each(model, [Request(PROMPT, seed, 1.0)], stop_ids=(), max_tokens=12)[0]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


# --- Many prompts --------------------------------------------------------------------------------


def test_a_batch_of_ragged_prompts_gives_what_each_gives_alone(model: nn.Module) -> None:
    alone = generate_each(model, REQUESTS, stop_ids=STOP, max_tokens=20)
    assert generate_together(model, REQUESTS, stop_ids=STOP, max_tokens=20) == alone
    assert len({len(ids) for ids in alone}) > 1, "answers of one length would prove little"
    assert all(not STOP & set(ids[:-1]) for ids in alone)
    assert all(ids[-1] in STOP or len(ids) == 20 for ids in alone)


def test_temperature_zero_is_the_likeliest_token(model: nn.Module) -> None:
    for ids in PROMPTS:
        free = greedy_without_cache(model, ids, 9)
        end = next((i + 1 for i, token in enumerate(free) if token in STOP), 9)
        generated = generate_together(model, [Request(ids)], stop_ids=STOP, max_tokens=9)
        assert generated == [free[:end]]


def test_an_answer_follows_from_its_seed_and_not_from_its_place(model: nn.Module) -> None:
    mx.random.seed(5)
    expected = mx.random.uniform().item()
    mx.random.seed(5)
    forwards = generate_together(model, REQUESTS, stop_ids=STOP, max_tokens=20)
    backwards = generate_together(model, REQUESTS[::-1], stop_ids=STOP, max_tokens=20)
    assert backwards[::-1] == forwards
    other = [r._replace(seed=r.seed + 100) for r in REQUESTS if r.temperature]
    assert generate_together(model, other, stop_ids=STOP, max_tokens=20) != forwards
    assert generate_each(model, REQUESTS, stop_ids=STOP, max_tokens=20) == forwards
    assert mx.random.uniform().item() == expected, "the run's own random state must not move"


def test_samples_come_as_often_as_their_probability_says(model: nn.Module) -> None:
    logits = model(mx.array([PROMPTS[0]]))[0, -1] / 2.0
    expected = np.array(mx.softmax(logits.astype(mx.float32), axis=-1))
    requests = [Request(PROMPTS[0], seed, 2.0) for seed in range(1000)]
    drawn = [ids[0] for ids in generate_together(model, requests, stop_ids=(), max_tokens=1)]
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


def test_a_model_that_cannot_be_batched_is_found_out(model: nn.Module) -> None:
    assert batches_exactly(model, PROMPTS)
    assert not batches_exactly(Blind(model), PROMPTS)


@pytest.mark.parametrize("room", [0, 1, 4])
def test_answers_end_where_a_models_positions_end(room: int) -> None:
    mx.random.seed(0)
    model = CourseModel(CourseArgs(TINY_VOCAB, 16, 2, 2, 7 + room, 32))
    requests = [Request(ids) for ids in PROMPTS]
    found = generate_together(model, requests, stop_ids=(), max_tokens=8)
    assert [len(ids) for ids in found] == [min(8, 7 + room - len(ids)) for ids in PROMPTS]
    assert found == generate_each(model, requests, stop_ids=(), max_tokens=8)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("is_batchable", [True, False])
def test_each_prompt_gets_the_answer_it_gets_alone_from_its_own_seed(
    temperature: float, is_batchable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BATCH", 2)
    monkeypatch.setattr(generate, "batches_exactly", lambda *_: is_batchable)
    prompts = [[5, 6, 7], [8, 9], [10], [11, 12, 13, 14, 15], [16, 17]]
    model, tokenizer = load_folder(oracle.FOLDER / "llama" / "model")
    chat = chat_format(tokenizer)
    reported: list[int] = []
    completions = answer_all(
        *(model, chat, prompts),
        max_tokens=9,
        temperature=temperature,
        seed=3,
        after_prompts=reported.append,
    )
    requests = [Request(ids, 3 + i, temperature) for i, ids in enumerate(prompts)]
    alone = complete(model, chat, requests, max_tokens=9)
    assert completions == alone
    assert len({tuple(c.ids) for c in completions}) > 1, "equal answers would prove little"
    assert reported == ([2, 2, 1] if is_batchable else [1] * 5)
