"""Answers of a model, against the definition: the likeliest next token, again and again."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_dpo.models.generate import generate_ids

PROMPT = [5, 40, 7, 21]


@pytest.fixture(scope="module")
def model(make_model: Callable[[], nn.Module]) -> nn.Module:
    return make_model()


def greedy_without_cache(model: nn.Module, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(model(mx.array([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("prompt", [PROMPT, [9], list(range(30))], ids=["short", "one", "long"])
def test_greedy_takes_the_likeliest_token_each_time(model: nn.Module, prompt: list[int]) -> None:
    found = generate_ids(model, prompt, stop_ids=(), max_tokens=12)
    assert found == greedy_without_cache(model, prompt, 12)


def test_the_answer_ends_with_the_first_stop_token(model: nn.Module) -> None:
    free = greedy_without_cache(model, PROMPT, 12)
    stop = free[5]
    found = generate_ids(model, PROMPT, stop_ids={stop, 1000}, max_tokens=12)
    assert found == free[: free.index(stop) + 1]


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_the_answer_is_no_longer_than_allowed(model: nn.Module, max_tokens: int) -> None:
    assert len(generate_ids(model, PROMPT, stop_ids=(), max_tokens=max_tokens)) == max_tokens


def test_sampling_follows_from_the_seed(model: nn.Module) -> None:
    def sample(seed: int) -> list[int]:
        mx.random.seed(seed)
        return generate_ids(model, PROMPT, stop_ids=(), max_tokens=12, temperature=1.0)

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
