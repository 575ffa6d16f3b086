"""What changed, from the log-probs of held-out pairs before and after training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logprobs = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GroupScore:
    """How a group of pairs fares.

    Attributes:
        name: The kind, or "all".
        num_pairs: Pairs in the group.
        reward_accuracy: Share whose chosen implicit reward is strictly greater. Before training it
            is 0 by construction: every reward is 0.
        logprob_accuracy_before: Share with log p(chosen) > log p(rejected) under the reference.
        logprob_accuracy_after: The same under the policy.
        margin: Mean of chosen minus rejected reward.
        chosen_reward: Mean implicit reward of the chosen responses.
        rejected_reward: Mean implicit reward of the rejected responses.
        loss: Mean DPO loss, in nats.
    """

    name: str
    num_pairs: int
    reward_accuracy: float
    logprob_accuracy_before: float
    logprob_accuracy_after: float
    margin: float
    chosen_reward: float
    rejected_reward: float
    loss: float

    @property
    def verdict(self) -> str:
        """Whether the policy ranks more pairs rightly than the reference did."""
        change = self.logprob_accuracy_after - self.logprob_accuracy_before
        return "better" if change > 0 else "worse" if change < 0 else "same"


def score_groups(
    policy: Logprobs, reference: Logprobs, kinds: Sequence[str], *, beta: float
) -> list[GroupScore]:
    """Scores of all pairs, then of each kind where there is more than one.

    Args:
        policy: float32 (2, N), chosen and rejected log-probs after training.
        reference: float32 (2, N), before training.
        kinds: N names.
        beta: The beta of the run.
    """
    rows = np.array(kinds)
    groups = [_score("all", policy, reference, beta)]
    if len(set(kinds)) > 1:
        for kind in dict.fromkeys(kinds):
            member = rows == kind
            groups.append(_score(kind, policy[:, member], reference[:, member], beta))
    return groups


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); sound for small counts and for 0 and 1."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _score(name: str, policy: Logprobs, reference: Logprobs, beta: float) -> GroupScore:
    chosen, rejected = beta * (policy.astype(np.float64) - reference)
    margin = chosen - rejected
    return GroupScore(
        name=name,
        num_pairs=margin.size,
        reward_accuracy=float((margin > 0).mean()),
        logprob_accuracy_before=float((reference[0] > reference[1]).mean()),
        logprob_accuracy_after=float((policy[0] > policy[1]).mean()),
        margin=float(margin.mean()),
        chosen_reward=float(chosen.mean()),
        rejected_reward=float(rejected.mean()),
        loss=float(np.logaddexp(0, -margin).mean()),
    )
