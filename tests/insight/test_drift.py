"""Divergence along an answer is the sum a person would write down, whatever the chunks."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.insight import scoring
from mlx_dpo.insight.drift import measure_drift, token_kl
from mlx_dpo.insight.scoring import open_model
from tests.conftest import TINY_VOCAB
from tests.insight.conftest import nudge
from tests.runs.conftest import ORACLE

PROMPT = [40, 1, 2, 3]
ANSWER = [10, 11, 12, 13, 14, 15, 16, 2]


@pytest.fixture(scope="module")
def models(make_model: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    return nudge(make_model()), make_model()


def all_logprobs(model: nn.Module, ids: list[int]) -> np.ndarray:
    """(T, V) in float64, in one forward without a cache."""
    logits = np.array(model(mx.array([ids]))[0], dtype=np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs: np.ndarray = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logprobs


@pytest.mark.parametrize("positions", [1, 3, 64])
def test_token_kl_is_the_sum_over_the_vocabulary_at_each_position(
    models: tuple[nn.Module, nn.Module], positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "POSITIONS", positions)
    policy, reference = models
    first = len(PROMPT) - 1
    p, q = (all_logprobs(m, PROMPT + ANSWER)[first:-1] for m in models)
    expected = (np.exp(p) * (p - q)).sum(axis=-1)
    found = token_kl(policy, reference, PROMPT, ANSWER)
    assert expected.min() > 1e-4
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    # The other direction is another number: which of the two is taken matters.
    assert (np.exp(q) * (q - p)).sum(axis=-1) != pytest.approx(expected, rel=1e-2)


def test_a_model_has_no_divergence_from_itself(models: tuple[nn.Module, nn.Module]) -> None:
    assert token_kl(models[0], models[0], PROMPT, ANSWER) == pytest.approx(np.zeros(len(ANSWER)))


def test_the_mean_over_the_policys_own_answers_is_the_divergence_of_whole_answers(
    models: tuple[nn.Module, nn.Module],
) -> None:
    """Every answer of two tokens, weighted by the policy: the chain rule, without sampling."""
    first_p, first_q = (all_logprobs(m, PROMPT)[-1] for m in models)
    by_position = whole = 0.0
    for token in range(TINY_VOCAB):
        p, q = (all_logprobs(m, [*PROMPT, token])[-1] for m in models)
        joint_p, joint_q = first_p[token] + p, first_q[token] + q
        whole += float((np.exp(joint_p) * (joint_p - joint_q)).sum())
        found = token_kl(models[0], models[1], PROMPT, [token, 0])
        by_position += float(np.exp(first_p[token]) * found.sum())
    assert by_position == pytest.approx(whole, rel=1e-4)


def test_a_token_the_policy_rules_out_adds_nothing(
    models: tuple[nn.Module, nn.Module],
) -> None:
    class Without(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.inner = model
            self.layers = model.layers

        def __call__(self, ids: mx.array, cache: object = None) -> mx.array:
            ruled_out = mx.arange(TINY_VOCAB) == 7
            return mx.where(ruled_out, -mx.inf, self.inner(ids, cache=cache))

    found = token_kl(Without(models[0]), Without(models[1]), PROMPT, ANSWER)
    assert np.isfinite(found).all()


def test_drift_adds_up_tokens_and_not_answers_means() -> None:
    """The policy against itself: no divergence, and both speak alike from one seed."""
    model = open_model(str(ORACLE))
    prompts = [[5, 6, 7], [8, 9]]
    counts: list[int] = []
    found = measure_drift(model, model, prompts, max_tokens=6, seed=3, after_prompts=counts.append)
    assert found.kl_per_token == pytest.approx(0, abs=1e-7)
    assert found.policy_length == found.reference_length == found.num_tokens / 2
    assert found.policy_cut == found.reference_cut
    assert sum(counts) == 2
    assert found == measure_drift(model, model, prompts, max_tokens=6, seed=3)


def test_a_policy_that_moved_has_drifted_by_the_mean_over_its_tokens(policy_folder: object) -> None:
    policy, reference = open_model(str(policy_folder)), open_model(str(ORACLE))
    found = measure_drift(policy, reference, [[5, 6, 7], [8, 9]], max_tokens=6, seed=0)
    assert found.kl_per_token > 1e-3
    assert found.kl_per_token * found.num_tokens == pytest.approx(
        found.kl_per_answer * found.num_prompts
    )
