"""CHES: how alike a pair's answers are to the model, as its definition says."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.insight.ches import Scored, ches_scores
from mlx_dpo.insight.scoring import LoadedModel, open_model
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.head import hidden_states
from tests.insight.test_rewards import random_pairs
from tests.runs.conftest import ORACLE
from tests.training import architectures

PAIRS = random_pairs(6)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return open_model(str(ORACLE))


def answer_states(loaded: LoadedModel, prompt: list[int], answer: list[int]) -> np.ndarray:
    """The states that predict an answer's tokens, one sequence at a time: float64 (T, H)."""
    hidden = hidden_states(loaded.model, mx.array([[*prompt, *answer][:-1]]), None)
    return np.array(hidden[0, len(prompt) - 1 :], dtype=np.float64)


@pytest.mark.parametrize("by_length", [True, False])
def test_it_is_the_dot_product_of_both_less_that_of_the_chosen_with_itself(
    loaded: LoadedModel, by_length: bool
) -> None:
    found = ches_scores(loaded.model, PAIRS, max_length=64, pad_id=0, by_length=by_length)
    expected = []
    for prompt, *answers in PAIRS:
        states = [answer_states(loaded, prompt, answer) for answer in answers]
        chosen, rejected = (s.mean(axis=0) if by_length else s.sum(axis=0) for s in states)
        expected.append(chosen @ rejected - chosen @ chosen)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_same_answer_twice_scores_0_and_the_padding_of_others_counts_nothing(
    loaded: LoadedModel,
) -> None:
    prompt, chosen, _ = PAIRS[0]
    same = PreferenceExample(prompt, chosen, chosen)
    assert ches_scores(loaded.model, [same], max_length=64, pad_id=0) == [0]
    alone = ches_scores(loaded.model, PAIRS[:1], max_length=64, pad_id=0)
    among = ches_scores(loaded.model, PAIRS[:4], max_length=64, pad_id=7)
    assert among[0] == pytest.approx(alone[0], rel=1e-4)


def test_the_most_alike_are_a_share_and_at_least_one() -> None:
    scored = Scored([], np.array([-3, -1, -2, -1], dtype=np.float32))
    assert scored.most_alike(0.5) == [1, 3]
    assert scored.most_alike(0.01) == [1]


def test_whole_rows_are_read_as_a_model_that_answers_reads_them() -> None:
    """Without caches, later layers of Gemma 3n compute keys that it was not trained with."""
    model = architectures.make("gemma3n")
    ids = mx.array([[5, 6, 7, 8, 9, 10]])
    expected = hidden_states(model, ids, model.make_cache())
    assert mx.allclose(hidden_states(model, ids, None), expected, rtol=1e-4, atol=1e-5)
