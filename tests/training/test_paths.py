"""Every path computes what the plain one does: log-probs, gradients, whole trajectories."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest

from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training import head, paths
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.prompts import continue_prompts
from mlx_dpo.training.trainer import DPOTrainer
from tests.training import architectures

LENGTH = 24
PLAIN = PlainPath(LENGTH, 0)
SHARED = FastPath(LENGTH, 0)
ONE_LENGTH = FastPath(LENGTH, 0, one_length=True)
UNPADDED = FastPath(LENGTH, 0, unpadded=True)
JOINED = FastPath(LENGTH, 0, share_prompts=False)

# Gemma 2 attends with five-dimensional scores, which take no mask of its own for each row. Llama 4
# counts positions from one number. Jamba's states take in padding. Mamba asks for mlx-lm's class.
FASTEST: dict[str, FastPath] = {name: SHARED for name in architectures.EXTRA} | {
    "gemma2": ONE_LENGTH,
    "llama4": ONE_LENGTH,
    "jamba": UNPADDED,
    "mamba": JOINED,
    architectures.COURSE: SHARED,
}


def _ids(rng: np.random.Generator, count: int) -> list[int]:
    ids: list[int] = rng.integers(3, architectures.VOCAB, count).tolist()
    return ids


def _pairs() -> list[PreferenceExample]:
    rng = np.random.default_rng(0)
    lengths = [(9, 5, 3), (1, 4, 7), (12, 1, 9), (6, 6, 6), (3, 20, 2), (22, 6, 1), (30, 2, 3)]
    pairs = [PreferenceExample(*(_ids(rng, n) for n in each)) for each in lengths]
    return [
        *pairs,
        PreferenceExample(pairs[0].prompt_ids, _ids(rng, 4), _ids(rng, 2)),  # a prompt met again
        PreferenceExample(_ids(rng, 5), [], _ids(rng, 3)),
        PreferenceExample([], _ids(rng, 4), _ids(rng, 5)),
        PreferenceExample(_ids(rng, 7), [5, 6], [5, 6]),
        PreferenceExample(_ids(rng, 4), [0, 0, 7], [8, 0]),  # ids that are also padding
    ]


PAIRS = _pairs()
# Ragged, a prompt of one token, an empty response, two that are alike.
TRAINED = [*PAIRS[:5], PAIRS[8], PAIRS[10]]
BATCHES = {
    "one ragged pair": PAIRS[:1],
    "a prompt of one token": PAIRS[1:2],
    "five ragged pairs": PAIRS[:5],
    "every odd case": PAIRS,
    "prompts that begin alike": [
        PreferenceExample([*range(3, 15), *pair.prompt_ids[:4]], *pair[1:]) for pair in PAIRS[:5]
    ],
}


def logprobs_and_gradient(
    path: ScoringPath, model: nn.Module, pairs: Sequence[PreferenceExample]
) -> tuple[np.ndarray[Any, Any], dict[str, mx.array]]:
    weights = mx.array(np.random.default_rng(1).normal(size=(2, len(pairs))), mx.float32)

    def weighted() -> tuple[mx.array, mx.array]:
        logprobs = path(model, pairs, gradient=True)
        return (logprobs * weights).sum(), logprobs

    (_, logprobs), grads = nn.value_and_grad(model, weighted)()
    return np.array(logprobs), named_arrays(grads)


def assert_same(
    path: ScoringPath,
    model: nn.Module,
    pairs: Sequence[PreferenceExample],
    plain: ScoringPath = PLAIN,
) -> None:
    expected, plain_grads = logprobs_and_gradient(plain, model, pairs)
    found, grads = logprobs_and_gradient(path, model, pairs)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-6)
    assert grads.keys() == plain_grads.keys()
    # Some gradients are nothing but rounding: a bias of all keys moves no attention weight.
    noise = 1e-7 * max(float(mx.abs(grad).max()) for grad in plain_grads.values())
    for name, grad in grads.items():
        largest = float(mx.abs(plain_grads[name]).max())
        error = float(mx.abs(grad - plain_grads[name]).max())
        assert error <= 1e-5 * largest + noise, name


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", FASTEST)
def test_the_fast_path_agrees_with_the_plain_one(name: str, batch: str) -> None:
    assert_same(FASTEST[name], architectures.make(name), BATCHES[batch])


@pytest.mark.parametrize("name", ["llama", "gemma", "granite", "mixtral", architectures.COURSE])
def test_chunks_of_the_output_layer_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", 7 * 4 * architectures.VOCAB)
    assert_same(FASTEST[name], architectures.make(name), PAIRS)


@pytest.mark.parametrize("keep", [False, True])
def test_exponentials_kept_or_not_are_the_log_softmax_and_its_gradient(keep: bool) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(4, 50)).astype(np.float32)
    logits[1] *= 40  # most of their exponentials are zero
    logits[2] += 1000
    logits[3] = -1e4
    targets = np.array([7, int(logits[1].argmin()), 0, 49])

    def logprobs(logits: mx.array) -> mx.array:
        return head._log_softmax_at(logits, mx.array(targets), keep=keep)

    weights = np.array([1.0, -2.0, 0.5, 3.0])
    (found,), (gradient,) = mx.vjp(logprobs, [mx.array(logits)], [mx.array(weights, mx.float32)])
    exact = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    rows = np.arange(4)
    np.testing.assert_allclose(np.array(found), exact[rows, targets], rtol=1e-6, atol=1e-4)
    by_logits = -np.exp(exact)
    by_logits[rows, targets] += 1
    expected = by_logits * weights[:, None]
    np.testing.assert_allclose(np.array(gradient), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", [JOINED, ONE_LENGTH], ids=lambda path: path.name)
def test_the_other_paths_agree_too(path: ScoringPath) -> None:
    assert_same(path, architectures.make("llama"), PAIRS)


def test_layers_without_keys_of_their_own_read_those_that_they_read_when_generating() -> None:
    """Called without a cache, mlx-lm's Gemma 3n computes keys in them, and is another model."""
    model = architectures.make("gemma3n")
    prompt, response, _ = PAIRS[0]
    ids = mx.array([[*prompt, *response]])
    logits = model(ids, cache=model.make_cache())[0, len(prompt) - 1 : -1]
    expected = nn.log_softmax(logits)[mx.arange(len(response)), mx.array(response)].sum()
    assert float(PLAIN(model, PAIRS[:1])[0, 0]) == pytest.approx(float(expected), abs=1e-4)


# A new way of going on from a prompt is looked at once.
FOLLOWED = [n for n in FASTEST if n not in ("mamba", "jamba", "qwen3_next", "llama4")]


@pytest.mark.parametrize("name", FOLLOWED)
def test_sixteen_steps_follow_the_plain_trajectory(name: str) -> None:
    losses = []
    for path in (PLAIN, FASTEST[name]):
        trainer = DPOTrainer(
            architectures.make(name),
            ref_model=None,
            reference=lambda pairs: mx.full((2, len(pairs)), -20.0),  # it is the same on each path
            examples=TRAINED,
            max_seq_len=LENGTH,
            pad_id=0,
            beta=0.1,
            batch_size=2,
            max_steps=16,
            max_lr=0.002,
            # Adam would hide a gradient that is wrong by a factor.
            optimizer=optim.SGD(learning_rate=0.002),
            path=path,
        )
        losses.append([trainer.train_step()["loss"] for _ in range(16)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert abs(losses[0][-1] - losses[0][0]) > 1e-4


def test_a_pair_whose_responses_are_cut_away_scores_zero() -> None:
    pairs = [PreferenceExample([3] * 40, [4], [5])]
    model = architectures.make("llama")
    for path in (SHARED, JOINED):
        assert np.array(path(model, pairs)).tolist() == [[0.0], [0.0]]


def test_the_model_is_left_as_it_was() -> None:
    model = architectures.make("llama")
    before = {name: np.array(a) for name, a in named_arrays(model.parameters()).items()}
    trunk = model.model
    logprobs_and_gradient(SHARED, model, PAIRS)
    assert model.model is trunk
    assert "model" not in vars(model)
    for name, array in named_arrays(model.parameters()).items():
        assert np.array_equal(np.array(array), before[name])


def test_work_counts_a_shared_prompt_once() -> None:
    pair = PreferenceExample([3] * 9, [4] * 5, [5] * 3)
    # Prompt without its last token, then that token and the response but for its last.
    assert SHARED.work([pair]).real_tokens == 8 + 5 + 3
    assert SHARED.work([pair]).unshared_tokens == (8 + 5) + (8 + 3)
    assert PLAIN.work([pair]).real_tokens == (8 + 5) + (8 + 3)
    assert PLAIN.work([pair]).computed_tokens == 2 * (8 + 5)


def test_rows_of_two_lengths_that_continue_the_same_prompts_share_their_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def watched(*args: Any, **options: Any) -> Any:
        made.append(continue_prompts(*args, **options))
        return made[-1]

    monkeypatch.setattr(paths, "continue_prompts", watched)
    rng = np.random.default_rng(0)
    pairs = [PreferenceExample(_ids(rng, 8), _ids(rng, 8), _ids(rng, 200)) for _ in range(2)]
    path = FastPath(256, 0)
    assert len(path.layout(pairs).row_groups) == 2
    model = architectures.make("llama")
    found = path(model, pairs)
    assert len(made) == 1
    np.testing.assert_allclose(found, PlainPath(256, 0)(model, pairs), rtol=1e-5)
