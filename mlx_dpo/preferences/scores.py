"""What changed, from the log-probs of held-out pairs before and after training.

Accuracy, margin and loss by kind and by length, with the interval of a share.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample

Logprobs = npt.NDArray[np.float32]
Lengths = npt.NDArray[np.int64]

TOLERANCE = 0.1  # of the longer response, at least one token: lengths that count as equal


@dataclass(frozen=True, slots=True)
class GroupScore:
    """Scores of a group of pairs.

    Attributes:
        name: The kind, or "all".
        num_pairs: Pairs in the group.
        reward_accuracy: Share whose chosen implicit reward is strictly greater. Before training it
            is 0 by construction: every reward is 0.
        logprob_accuracy_before, logprob_accuracy_after: Share with log p(chosen) > log p(rejected)
            under the reference, and under the policy.
        margin, chosen_reward, rejected_reward: Means; margin is chosen minus rejected reward.
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


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Pairs alike in which answer is the longer one; on how many of them the chosen answer wins.

    It wins by reward, and by log-prob under the reference (before) and the policy (after). `name`
    is "chosen longer", "length-matched" or "chosen shorter".
    """

    name: str
    num_pairs: int
    reward_wins: int
    logprob_wins_before: int
    logprob_wins_after: int


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A share of wins in which length counts for nothing.

    It is the mean of two shares: where the winner would be the longer answer, and where it would be
    the shorter one. A rule that always takes the longer answer has 0.5, whatever the pairs are.

    Attributes:
        share: That mean.
        interval: Its 95 % interval, from the Wilson intervals of both shares (method of variance
            estimates recovery, Zou and Donner 2008).
        num_pairs: Pairs of both groups.
    """

    share: float
    interval: tuple[float, float]
    num_pairs: int


def margins(policy: Logprobs, reference: Logprobs, *, beta: float) -> npt.NDArray[np.float64]:
    """Chosen minus rejected reward of each pair, float64 (N,), from log-probs (2, N)."""
    chosen, rejected = policy.astype(np.float64) - reference
    gaps: npt.NDArray[np.float64] = beta * (chosen - rejected)
    return gaps


def score_groups(
    policy: Logprobs, reference: Logprobs, kinds: Sequence[str], *, beta: float
) -> list[GroupScore]:
    """Scores of all pairs, then of each kind where there is more than one.

    Args:
        policy: float32 (2, N), chosen and rejected log-probs after training.
        reference: The same before training.
        kinds: N names.
        beta: That of the run.
    """
    rows = np.array(kinds)
    groups = [_score("all", policy, reference, beta)]
    if len(set(kinds)) > 1:
        for kind in dict.fromkeys(kinds):
            member = rows == kind
            groups.append(_score(kind, policy[:, member], reference[:, member], beta))
    return groups


def is_taught(kinds: Sequence[str], untaught: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Bool (N,): of which pairs the kind was trained on; see `untaught_kinds`."""
    return ~np.isin(np.array(kinds, dtype=str), np.array(untaught, dtype=str))


def untaught_kinds(trained: Iterable[str], held_out: Iterable[str]) -> tuple[str, ...]:
    """Kinds of held-out pairs that no training pair has: they show side effects of training.

    Where rows do not all say their kind, or no held-out pair would be left, nothing is set apart.
    """
    known, measured = set(trained), dict.fromkeys(held_out)
    apart = tuple(kind for kind in measured if kind and kind not in known)
    return () if "" in known or len(apart) == len(measured) else apart


def group_by_length(
    policy: Logprobs, reference: Logprobs, examples: Sequence[PreferenceExample]
) -> list[LengthGroup]:
    """Wins where chosen is the longer answer, as long, or shorter; a group may be empty.

    A policy that has learned length is right in the first and wrong in the last. Pairs are matched
    that differ by at most a tenth of the longer response, or by one token. Log-probs are (2, N).
    """
    _, chosen, rejected = lengths(examples).T
    longer = longer_one(chosen, rejected)
    change = policy.astype(np.float64) - reference
    return [
        LengthGroup(
            name,
            int(member.sum()),
            int((change[0] > change[1])[member].sum()),
            int((reference[0] > reference[1])[member].sum()),
            int((policy[0] > policy[1])[member].sum()),
        )
        for name, member in (
            ("chosen longer", longer == 1),
            ("length-matched", longer == 0),
            ("chosen shorter", longer == -1),
        )
    ]


def longer_one(first: Lengths, second: Lengths) -> Lengths:
    """Which of two answers is the longer one, from (N,) tokens of each.

    Returns:
        int (N,): 1 for the first, -1 for the second; 0 where they are matched, by a tenth of the
        longer one's tokens or by one token.
    """
    allowed = np.maximum(1, TOLERANCE * np.maximum(first, second))
    gap = first - second
    signs: Lengths = np.where(np.abs(gap) > allowed, np.sign(gap), 0)
    return signs


def length_controlled(
    longer: tuple[float, int], shorter: tuple[float, int]
) -> LengthControlled | None:
    """The share of wins if either answer were longer equally often; None if a group is empty.

    Args:
        longer: Wins and trials where the winner would be the longer answer.
        shorter: The same where it would be the shorter one.
    """
    if not (longer[1] and shorter[1]):
        return None
    shares = np.array([wins / trials for wins, trials in (longer, shorter)])
    low, high = np.array([wilson_interval(*group) for group in (longer, shorter)]).T
    down, up = (float(np.hypot(*(shares - ends))) / 2 for ends in (low, high))
    share = float(shares.mean())
    return LengthControlled(share, (share - down, share + up), longer[1] + shorter[1])


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
