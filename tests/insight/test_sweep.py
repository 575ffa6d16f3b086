"""Which beta a sweep advises, and when it advises none."""

from typing import Any

import numpy as np
import pytest

from mlx_dpo.insight.drift import Drift
from mlx_dpo.insight.sweep import Advice, BetaOutcome, advise
from mlx_dpo.preferences.scores import score_groups


def outcome(beta: float, right: range, *, kl: float = 0.1, warnings: Any = ()) -> BetaOutcome:
    """A beta that is right on those of 100 pairs."""
    is_right = np.isin(np.arange(100), right)
    policy = np.zeros((2, 100), np.float32)
    policy[0] = np.where(is_right, 1, -1)
    score = score_groups(policy, np.zeros_like(policy), ["all"] * 100, beta=beta)[0]
    numbers: dict[str, Any] = dict.fromkeys(Drift.__dataclass_fields__, 0)
    drift = Drift(**{**numbers, "kl_per_token": kl})
    return BetaOutcome(beta, score, is_right, drift, list(warnings))


def advised(*outcomes: BetaOutcome) -> Advice:
    return advise(outcomes)


def test_a_beta_that_is_better_beyond_chance_is_taken() -> None:
    found = advised(outcome(0.1, range(60)), outcome(0.5, range(80)), outcome(1.0, range(65)))
    assert (found.beta, found.is_clear) == (0.5, True)
    assert found.sentence.startswith("Take beta 0.5: better than the others")
    assert "right on 80 of 100 held-out pairs (95 % interval 0.71 to 0.87)" in found.reason
    assert "pairs that no run has seen" in found.reason


@pytest.mark.parametrize(("more", "is_clear"), [(5, False), (6, True)])
def test_five_pairs_more_may_be_chance_and_six_are_not(more: int, is_clear: bool) -> None:
    # 2 / 2^5 > 0.05 > 2 / 2^6, two-sided.
    found = advised(outcome(0.1, range(70)), outcome(0.5, range(70 + more)))
    assert found.is_clear == is_clear
    assert found.beta == (0.5 if is_clear else 0.1)


def test_without_a_winner_the_default_is_kept() -> None:
    found = advised(outcome(0.05, range(71)), outcome(0.1, range(70)), outcome(0.5, range(72)))
    assert found.sentence == "No clear winner: keep beta 0.1, the default."
    assert "Beta 0.5 is right on 72 of 100" in found.reason
    assert "beta 0.05 on 71, beta 0.1 on 70: these differences may be chance" in found.reason


def test_without_a_winner_and_the_default_the_least_drift_is_taken() -> None:
    found = advised(
        outcome(0.1, range(40)),  # surely worse
        *(outcome(0.05, range(70), kl=0.3), outcome(0.5, range(71), kl=0.2)),
    )
    assert (found.beta, found.is_clear) == (0.5, False)
    assert "take beta 0.5, which drifts least" in found.sentence


def test_no_beta_is_advised_that_learned_nothing_or_collapsed() -> None:
    found = advised(outcome(0.1, range(52)), outcome(0.5, range(55)))
    assert (found.beta, found.sentence) == (None, "No beta is surely better than chance.")
    collapsed = outcome(0.5, range(90), warnings=["answers never end"])
    assert advised(outcome(0.1, range(70)), collapsed).beta == 0.1
    assert "every run shows signs of collapse" in advised(collapsed, collapsed).sentence
    assert "Nothing to choose" in advised(outcome(0.1, range(90))).sentence
