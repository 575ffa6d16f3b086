"""Accuracy where chosen is the longer answer, where both are of a length, and where it is shorter.

A policy that has learned length is right in the first and wrong in the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_dpo.insight.evaluation import Logprobs
from mlx_dpo.records import PreferenceExample

TOLERANCE = 0.1  # of the longer response; at least one token


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Pairs alike in which answer is the longer one.

    Attributes:
        name: "chosen longer", "length-matched" or "chosen shorter".
        num_pairs: Pairs in it.
        reward_wins: Those whose chosen reward is the greater.
        logprob_wins_before: Those with log p(chosen) > log p(rejected) under the reference.
        logprob_wins_after: The same under the policy.
    """

    name: str
    num_pairs: int
    reward_wins: int
    logprob_wins_before: int
    logprob_wins_after: int


def group_by_length(
    policy: Logprobs, reference: Logprobs, examples: Sequence[PreferenceExample]
) -> list[LengthGroup]:
    """Wins in each of the three groups, some of which may be empty.

    Matched are pairs that differ by at most a tenth of the longer response, or by one token.

    Args:
        policy: float32 (2, N), chosen and rejected log-probs.
        reference: float32 (2, N).
        examples: N pairs.
    """
    chosen = np.array([len(e.chosen_ids) for e in examples])
    rejected = np.array([len(e.rejected_ids) for e in examples])
    allowed = np.maximum(1, TOLERANCE * np.maximum(chosen, rejected))
    gap = chosen - rejected
    groups = (
        ("chosen longer", gap > allowed),
        ("length-matched", np.abs(gap) <= allowed),
        ("chosen shorter", -gap > allowed),
    )
    change = policy.astype(np.float64) - reference
    return [
        LengthGroup(
            name,
            int(member.sum()),
            int((change[0] > change[1])[member].sum()),
            int((reference[0] > reference[1])[member].sum()),
            int((policy[0] > policy[1])[member].sum()),
        )
        for name, member in groups
    ]
