"""Pairs are scored as fast as training does, and never by a path that gives other numbers."""

import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.insight import scoring
from mlx_dpo.insight.scoring import answers_by_token, open_model, score_pairs, token_logprobs
from mlx_dpo.training import paths
from mlx_dpo.training.paths import PlainPath
from mlx_dpo.training.reference import score_in_batches
from tests.insight.test_rewards import random_pairs
from tests.runs.conftest import ORACLE

PAIRS = random_pairs(9)


def plain_logprobs(model: nn.Module) -> np.ndarray:
    plain = PlainPath(max_seq_len=64, pad_id=0)
    return score_in_batches(lambda batch: plain(model, batch), PAIRS, batch_size=4)


def test_pairs_are_scored_by_the_fast_path_where_it_agrees() -> None:
    loaded = open_model(str(ORACLE))
    logprobs, choice = score_pairs(loaded, PAIRS, max_length=64)
    assert (choice.path.name, choice.refused) == ("shared-prompt", ())
    assert logprobs == pytest.approx(plain_logprobs(loaded.model), abs=1e-3)


def test_the_self_check_of_a_model_that_is_only_scored_needs_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nn, "value_and_grad", None)
    _, choice = score_pairs(open_model(str(ORACLE)), PAIRS, max_length=64)
    assert choice.path.name == "shared-prompt"
    assert choice.num_pairs == 4


def test_a_fast_path_that_fails_gives_way_to_the_plain_one_and_its_reason_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("this model has no layers")

    monkeypatch.setattr(paths, "_logprobs", fail)
    loaded = open_model(str(ORACLE))
    logprobs, choice = score_pairs(loaded, PAIRS, max_length=64)
    assert choice.path.name == "plain"
    assert "this model's layers can't be called apart from its output layer" in {
        reason for _, reason in choice.refused
    }
    assert np.array_equal(logprobs, plain_logprobs(loaded.model))


def test_tokens_are_scored_by_the_fast_path_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = open_model(str(ORACLE))
    answers = [(pair.prompt_ids, response) for pair in PAIRS for response in pair[1:]]
    answers += [([], [7, 8, 9]), ([5, 6], [])]  # a first token that follows nothing; no token
    expected = [token_logprobs(loaded, *answer) for answer in answers]
    monkeypatch.setattr(scoring, "_WORTH_A_CHECK", len(answers))
    monkeypatch.setattr(scoring, "token_logprobs", None)
    counted: list[int] = []
    found = answers_by_token(loaded, answers, counted.append)
    assert sum(counted) == len(answers)
    for ours, plain in zip(found, expected, strict=True):
        assert ours == pytest.approx(plain, abs=1e-4)
