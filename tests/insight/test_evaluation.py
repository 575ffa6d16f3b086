"""Scores by group are what a person would count by hand."""

import numpy as np
import pytest

from mlx_dpo.insight.evaluation import score_groups, wilson_interval

REFERENCE = np.array([[-10, -20, -30, -40], [-11, -19, -30, -45]], dtype=np.float32)
POLICY = np.array([[-9, -18, -35, -40], [-13, -20, -31, -39]], dtype=np.float32)


def test_groups_count_what_can_be_counted_by_hand() -> None:
    """Rewards at beta 0.5: chosen .5 1 -2.5 0, rejected -1 -.5 -.5 3; margins 1.5 1.5 -2 -3."""
    everything, tone, form = score_groups(
        POLICY, REFERENCE, ["tone", "tone", "format", "format"], beta=0.5
    )
    assert (everything.name, everything.num_pairs) == ("all", 4)
    assert everything.reward_accuracy == 0.5
    assert everything.margin == pytest.approx(-0.5)
    assert everything.chosen_reward == pytest.approx(-0.25)
    assert everything.rejected_reward == pytest.approx(0.25)
    # log-probs: before 1 0 0 1 (a tie is not a win), after 1 1 0 0
    assert (everything.logprob_accuracy_before, everything.logprob_accuracy_after) == (0.5, 0.5)
    assert (tone.name, tone.verdict, tone.reward_accuracy) == ("tone", "better", 1.0)
    assert (form.name, form.verdict, form.reward_accuracy) == ("format", "worse", 0.0)
    assert tone.loss == pytest.approx(np.log1p(np.exp(-1.5)))


def test_an_untrained_policy_has_loss_log_2_and_no_reward_accuracy() -> None:
    (everything,) = score_groups(REFERENCE, REFERENCE, ["x"] * 4, beta=0.1)
    assert everything.loss == pytest.approx(np.log(2))
    assert everything.reward_accuracy == everything.margin == 0.0


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_agrees_with_published_values(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)
