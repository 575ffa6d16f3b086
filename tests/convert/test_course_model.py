"""The course's model in MLX: against its definition in NumPy, and with caches of many kinds."""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
import pytest
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_dpo.convert.course.params import slots
from mlx_dpo.models.course import CourseArgs, CourseModel
from mlx_dpo.models.generate import Request, generate_each
from mlx_dpo.models.parameters import named_arrays

ARGS = CourseArgs(
    vocab_size=48, embedding_dim=24, num_layers=2, num_heads=3, max_seq_len=20, hidden_dim=40
)
PROMPT = [5, 40, 7, 21, 3]
Array = npt.NDArray[np.float64]


def weights_of(model: nn.Module) -> dict[str, mx.array]:
    return named_arrays(model.parameters())


def make_model(args: CourseArgs = ARGS) -> CourseModel:
    """Random weights of a size that makes every part matter, norms and biases included."""
    rng = np.random.default_rng(0)
    model = CourseModel(args)
    values = [
        (name, mx.array(rng.normal(0.1, 0.4, value.shape).astype(np.float32)))
        for name, value in weights_of(model).items()
    ]
    model.load_weights(values)
    return model


def numpy_logits(model: CourseModel, ids: list[int]) -> Array:
    """The definition, in float64 and on the course's own (in, out) matrices."""
    args = model.args
    weights = weights_of(model)
    params = iter(
        np.array(weights[s.name].T if s.is_matrix else weights[s.name], np.float64)
        for s in slots(args)
    )

    def norm(x: Array, gamma: Array, beta: Array) -> Array:
        variance = x.var(-1, keepdims=True)
        normed: Array = (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-5)
        return normed * gamma + beta

    def linear(x: Array) -> Array:
        return x @ next(params) + next(params)

    def heads(x: Array) -> Array:
        return x.reshape(len(ids), args.num_heads, -1).transpose(1, 0, 2)

    token_embed, positions = next(params), next(params)
    x = token_embed[ids] + positions[: len(ids)]
    for _ in range(args.num_layers):
        normed = norm(x, next(params), next(params))
        q, k, v = (heads(linear(normed)) for _ in range(3))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(args.embedding_dim / args.num_heads)
        scores[:, np.triu(np.ones((len(ids), len(ids)), bool), 1)] = -np.inf
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ v
        x = x + linear(mixed.transpose(1, 0, 2).reshape(len(ids), -1))
        inner = linear(norm(x, next(params), next(params)))
        erf = np.vectorize(math.erf)
        x = x + linear(inner * (1 + erf(inner / math.sqrt(2))) / 2)
    return norm(x, next(params), next(params)) @ token_embed.T + next(params)


def test_logits_are_those_of_the_definition() -> None:
    model = make_model()
    ids = [*range(ARGS.max_seq_len)]
    expected = numpy_logits(model, ids)
    np.testing.assert_allclose(np.array(model(mx.array([ids]))[0]), expected, atol=2e-5)


def test_a_hidden_width_is_four_times_the_embedding_unless_given() -> None:
    sizes = {"vocab_size": 9, "embedding_dim": 8, "num_layers": 1, "num_heads": 2, "max_seq_len": 4}
    assert CourseArgs.from_dict(sizes).hidden_dim == 32
    assert CourseArgs.from_dict({**sizes, "hidden_dim": None}).hidden_dim == 32
    assert CourseArgs.from_dict({**sizes, "hidden_dim": 5}).hidden_dim == 5


@pytest.mark.parametrize(
    "change",
    [
        {"vocab_size": 0},
        {"num_layers": -1},
        {"max_seq_len": 1.5},
        {"embedding_dim": True},
        {"num_heads": 5},
        {"num_heads": None},
    ],
)
def test_sizes_that_make_no_model_are_refused(change: dict[str, Any]) -> None:
    sizes = {"vocab_size": 9, "embedding_dim": 8, "num_layers": 1, "num_heads": 2, "max_seq_len": 4}
    with pytest.raises(ValueError, match=next(iter(change))):
        CourseArgs.from_dict({**sizes, **change})


# --- Caches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1, 4, 11])
def test_a_cache_gives_the_logits_of_one_whole_forward(first: int) -> None:
    model = make_model()
    ids = mx.array([[7, 3, 9, 1, 30, 22, 5, 5, 40, 2, 11, 12], [*range(20, 32)]])
    cache = [KVCache() for _ in model.layers]
    parts = [model(ids[:, :first], cache=cache)]
    parts += [model(ids[:, i : i + 1], cache=cache) for i in range(first, 12)]
    np.testing.assert_allclose(
        np.array(mx.concatenate(parts, axis=1)), np.array(model(ids)), atol=2e-5
    )


@pytest.mark.parametrize("prompt", [PROMPT, [9]], ids=["five", "one"])
def test_greedy_answers_are_those_of_whole_forwards(prompt: list[int]) -> None:
    model = make_model()
    ids = list(prompt)
    while len(ids) < ARGS.max_seq_len:
        ids.append(int(model(mx.array([ids]))[0, -1].argmax()))
    num_new = ARGS.max_seq_len - len(prompt)
    found = generate_each(model, [Request(prompt)], stop_ids=(), max_tokens=num_new)[0]
    assert found == ids[len(prompt) :]


class SharedPrompt:
    """Keys and values of prompts of several lengths, padded on the right, and what follows them."""

    def __init__(self, recorded: KVCache, lengths: list[int]) -> None:
        self.keys, self.values = recorded.keys_and_values()
        self.offset = mx.array(lengths)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return (
            mx.concatenate([self.keys, keys], axis=2),
            mx.concatenate([self.values, values], axis=2),
        )

    def make_mask(self, length: int, **_: Any) -> mx.array:
        width = self.keys.shape[2]
        of_prompt = mx.arange(width)[None, :] < self.offset[:, None]
        of_prompt = mx.broadcast_to(of_prompt[:, None, None], (len(of_prompt), 1, length, width))
        own = mx.broadcast_to(create_causal_mask(length), (len(of_prompt), 1, length, length))
        return mx.concatenate([of_prompt, own], axis=-1)


class SeenPositions(nn.Embedding):
    """Learned positions that remember which were asked for."""

    seen: mx.array

    def __call__(self, positions: mx.array) -> mx.array:
        SeenPositions.seen = positions
        values: mx.array = super().__call__(positions)  # type: ignore[no-untyped-call]
        return values


def test_prompts_of_several_lengths_are_continued_each_from_its_own_end() -> None:
    """The padding of the last row reaches past the last position the model has learned."""
    model = make_model()
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [30, 31, 32], [44, 45, 46, 47]]
    answers = [[20, 21, 22, 23, 24], [25, 26, 27, 28, 29, 10, 11], [33, 34, 35, 36, 37, 38, 39]]

    def padded(rows: list[list[int]]) -> mx.array:
        width = max(map(len, rows))
        return mx.array([row + [0] * (width - len(row)) for row in rows])

    recorded = [KVCache() for _ in model.layers]
    model(padded(prompts), cache=recorded)
    lengths = [len(prompt) for prompt in prompts]
    cache = [SharedPrompt(layer, lengths) for layer in recorded]
    positions = SeenPositions(ARGS.max_seq_len, ARGS.embedding_dim)
    positions.weight = model.model.pos_embed.weight
    model.model.pos_embed = positions
    found = model(padded(answers), cache=cache)
    # Beyond the last row of the table MLX reads, and in training writes, memory that is not its.
    assert positions.seen[0].tolist() == [15, 16, 17, 18, 19, 19, 19]
    assert bool(mx.isfinite(found).all())
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        whole = model(mx.array([prompt + answer]))[0, len(prompt) :]
        np.testing.assert_allclose(
            np.array(found[row, : len(answer)]), np.array(whole), atol=3e-5, err_msg=str(row)
        )


def test_a_quantised_cache_is_near() -> None:
    model = make_model(
        CourseArgs(
            vocab_size=48, embedding_dim=64, num_layers=1, num_heads=2, max_seq_len=20,
            hidden_dim=64,
        )
    )  # fmt: skip
    ids = mx.array([PROMPT])
    found = model(ids, cache=[QuantizedKVCache(group_size=32, bits=8)])
    assert float(mx.abs(found - model(ids)).max()) < 0.2


# --- Length --------------------------------------------------------------------------------------


def test_a_sequence_longer_than_the_positions_is_refused_with_both_numbers() -> None:
    model = make_model()
    model(mx.zeros((1, 20), mx.int32))
    with pytest.raises(ValueError, match=r"21 tokens .* max_seq_len 20"):
        model(mx.zeros((1, 21), mx.int32))


def test_a_cache_counts_towards_the_length() -> None:
    model = make_model()
    cache = [KVCache() for _ in model.layers]
    model(mx.zeros((1, 18), mx.int32), cache=cache)
    with pytest.raises(ValueError, match=r"21 tokens .* max_seq_len 20"):
        model(mx.zeros((1, 3), mx.int32), cache=cache)


# --- Gradients -----------------------------------------------------------------------------------


def test_every_parameter_gets_a_gradient_and_unused_positions_none() -> None:
    model = make_model()

    def loss(ids: mx.array) -> mx.array:
        return mx.logsumexp(model(ids), axis=-1).sum() - model(ids)[..., 5].sum()

    _, grads = nn.value_and_grad(model, loss)(mx.array([PROMPT]))
    named = named_arrays(grads)
    assert named.keys() == weights_of(model).keys()
    silent = {name for name, grad in named.items() if not mx.abs(grad).max() > 0}
    assert silent == set()
    positions = np.abs(np.array(named["model.pos_embed.weight"])).max(-1) > 0
    assert positions.tolist() == [True] * 5 + [False] * 15
