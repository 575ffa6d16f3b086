"""What changed, from the log-probs of held-out pairs before and after training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DataError
from mlx_dpo.insight.drift import Drift, measure_drift
from mlx_dpo.insight.rewards import LengthGroup, group_by_length
from mlx_dpo.insight.scoring import Judged, Logprobs, check_same_tokens, score_pairs
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.records import EncodedPairs, Preference

# --- Does sigmoid(margin) mean what it says: of pairs given 0.8,
# are four in five ranked right?
#
# The chosen answer always won, so sigmoid(margin) set against "chosen won" has one outcome only,
# and says nothing. A judge who doesn't know the sides would see each pair in both orders, given s
# and 1 - s, one of them right. Both say the same thing, so each pair counts once, in the order
# the policy bets on: its confidence is sigmoid(|margin|), at least one half, and the outcome is
# whether the bet was right.


Floats = npt.NDArray[np.float64]

MOST_BINS = 10
PAIRS_PER_BIN = 10  # at least; fewer, and a bin's accuracy is mostly chance
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of like confidence.

    Attributes:
        num_pairs: How many.
        low: Least confidence among them.
        high: Greatest.
        confidence: Mean confidence.
        right: Bets that were right; half for a margin of exactly 0.
    """

    num_pairs: int
    low: float
    high: float
    confidence: float
    right: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far confidence and outcome agree.

    Attributes:
        bins: Equal in count as far as it goes, least confident first.
        ece: Expected calibration error: mean over pairs of |accuracy - confidence| of their bin.
        ece_by_chance: What a perfectly calibrated policy would show on average on so few pairs.
    """

    bins: list[Bin]
    ece: float
    ece_by_chance: float


def calibrate(margins: Sequence[float] | Floats) -> Calibration:
    """Reliability of sigmoid(margin) over at least one pair.

    Args:
        margins: (N,) chosen minus rejected reward.
    """
    margin = np.asarray(margins, dtype=np.float64)
    order = np.argsort(np.abs(margin), kind="stable")
    margin = margin[order]
    # With |m| the exponential can't overflow.
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = np.where(margin == 0, 0.5, margin > 0)
    num_bins = min(MOST_BINS, max(1, len(margin) // PAIRS_PER_BIN))
    parts = np.array_split(np.arange(len(margin)), num_bins)
    bins = [
        Bin(
            len(part),
            float(confidence[part[0]]),
            float(confidence[part[-1]]),
            float(confidence[part].mean()),
            float(right[part].sum()),
        )
        for part in parts
    ]
    draws = np.random.default_rng(0).random((_DRAWS, len(margin))) < confidence
    by_chance = np.mean([_ece(confidence, drawn.astype(float), parts) for drawn in draws])
    return Calibration(bins, _ece(confidence, right, parts), float(by_chance))


def _ece(confidence: Floats, right: Floats, parts: Sequence[npt.NDArray[np.intp]]) -> float:
    gaps = sum(abs(right[part].sum() - confidence[part].sum()) for part in parts)
    return float(gaps / len(confidence))


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


# --- A policy beside the model it was trained from, on pairs: all
# that `mlx_dpo eval` shows.


# Called with what is being done, how much of it there is, and how much more is done.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Assessment:
    """What the pairs say of a policy.

    Attributes:
        pairs: The pairs, and what became of the rows they came from.
        policy: float32 (2, N), log-probs under the policy.
        reference: float32 (2, N), under the reference.
        groups: Scores of all pairs and of each kind.
        lengths: Wins where chosen is longer, as long, shorter.
        calibration: Whether confidence and outcome agree.
        drift: Divergence on the policy's own answers; None where no prompt was answered.
    """

    pairs: EncodedPairs
    policy: Logprobs
    reference: Logprobs
    groups: list[GroupScore]
    lengths: list[LengthGroup]
    calibration: Calibration
    drift: Drift | None


def assess(
    policy: Judged,
    reference: Judged,
    preferences: Sequence[Preference],
    *,
    beta: float,
    max_length: int,
    num_prompts: int,
    max_tokens: int,
    seed: int,
    drop_bad: bool = False,
    progress: Progress = lambda name, total, more: None,
) -> Assessment:
    """Score pairs under both models, then let both answer some of the prompts.

    Args:
        policy: The trained model.
        reference: The model it was trained from.
        preferences: Held-out rows.
        beta: The beta of the run.
        max_length: Tokens kept of prompt + response.
        num_prompts: Prompts to answer, spread over the rows; 0 leaves drift unmeasured.
        max_tokens: Longest answer.
        seed: Decides what is sampled.
        drop_bad: Whether rows that training would leave out are left out instead of refused.
        progress: Told how far it is.

    Raises:
        UsageError: If the models have different tokenizers.
        DataError: If no pair is left to score, or one holds a special token.
        NonFiniteError: If a log-prob is not finite.
    """
    check_same_tokens(policy.chat, reference)
    pairs = encode_preferences(preferences, policy.chat, max_length=max_length, drop_bad=drop_bad)
    if not pairs.examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in pairs.dropped.items())
        raise DataError(
            f"no pair is left to score ({reasons or 'there is none'}): see --max-length"
        )
    num = len(pairs.examples)
    ours, theirs = (
        score_pairs(
            judged,
            pairs.examples,
            max_length=max_length,
            after_batch=lambda count: progress("pairs", 2 * num, count),
        )
        for judged in (policy, reference)
    )
    gained = ours.astype(np.float64) - theirs
    prompts = spread_prompts(pairs.preferences, num_prompts)
    drift = None
    if prompts:
        drift = measure_drift(
            policy,
            reference,
            [policy.chat.prompt_ids(row.prompt) for row in prompts],
            max_tokens=max_tokens,
            seed=seed,
            after_prompts=lambda count: progress("answers", len(prompts), count),
        )
    return Assessment(
        pairs=pairs,
        policy=ours,
        reference=theirs,
        groups=score_groups(ours, theirs, [p.kind for p in pairs.preferences], beta=beta),
        lengths=group_by_length(ours, theirs, pairs.examples),
        calibration=calibrate(beta * (gained[0] - gained[1])),
        drift=drift,
    )


def spread_prompts(preferences: Sequence[Preference], count: int) -> list[Preference]:
    """At most `count` rows of different prompts, evenly spread over the file."""
    rows = list({p.prompt: p for p in reversed(preferences)}.values())[::-1]
    count = min(count, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]


def held_out_of_run(
    preferences: Sequence[Preference], data: str, record: dict[str, Any]
) -> list[Preference] | None:
    """The rows a model was not trained on, where they are of the file it was trained on.

    Args:
        preferences: The rows of a file.
        data: Its name.
        record: The model's ``dpo.json``.

    Returns:
        None where it is another file, by its name or its ids.
    """
    try:
        file, split = record["data"]["file"], record["data"]["split"]
        train, held = set(split["train"]), set(split["held_out"])
        same_name = Path(file).name == Path(data).name
    except (KeyError, TypeError):
        return None
    if not same_name or not held or not train | held <= {p.id for p in preferences}:
        return None
    return [p for p in preferences if p.id in held]
