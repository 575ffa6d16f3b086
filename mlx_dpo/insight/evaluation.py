"""What changed, from the log-probs of held-out pairs before and after training.

Accuracy, margin and loss by kind and by length; `assess` gathers all that `mlx_dpo eval` shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DataError
from mlx_dpo.insight.calibration import Reliability, reliability
from mlx_dpo.insight.drift import Drift, measure_drift
from mlx_dpo.insight.scoring import LoadedModel, Logprobs, check_same_tokens, score_pairs
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import EncodedPairs, Preference, PreferenceExample
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.training.self_check import Choice

TOLERANCE = 0.1  # of the longer response, at least one token: lengths that count as equal

# Called with what is being done, how much of it there is, and how much more is done.
ShowProgress = Callable[[str, int, int], None]


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


@dataclass(frozen=True)
class Assessment:
    """A policy beside its reference, on pairs.

    Attributes:
        pairs: The pairs, and what became of the rows they came from.
        policy, reference: float32 (2, N), log-probs under each.
        choice: How the policy's log-probs were computed, and why not faster.
        groups: Scores of all pairs and of each kind.
        lengths: Wins where chosen is longer, as long, shorter.
        calibration: Whether confidence and outcome agree.
        drift: Divergence on the policy's own answers; None where no prompt was answered.
    """

    pairs: EncodedPairs
    policy: Logprobs
    reference: Logprobs
    choice: Choice
    groups: list[GroupScore]
    lengths: list[LengthGroup]
    calibration: Reliability
    drift: Drift | None


def assess(
    policy: LoadedModel,
    reference: LoadedModel,
    preferences: Sequence[Preference],
    *,
    beta: float,
    max_length: int,
    num_prompts: int,
    max_tokens: int,
    seed: int,
    drop_bad: bool = False,
    progress: ShowProgress = lambda name, total, more: None,
) -> Assessment:
    """Score pairs under both models, then let both answer some of the prompts.

    Pairs are cut to `max_length` tokens of prompt + response; with `drop_bad`, rows that training
    would leave out are left out instead of refused. `num_prompts` prompts, spread over
    the rows, are answered in at most `max_tokens`; 0 leaves drift unmeasured.

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
    ours, theirs = (
        score_pairs(
            loaded,
            pairs.examples,
            max_length=max_length,
            after_batch=lambda count: progress("pairs", 2 * len(pairs.examples), count),
        )
        for loaded in (policy, reference)
    )
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
    scores = ours.logprobs, theirs.logprobs
    return Assessment(
        pairs,
        *scores,
        choice=ours.choice,
        groups=score_groups(*scores, [p.kind for p in pairs.preferences], beta=beta),
        lengths=group_by_length(*scores, pairs.examples),
        calibration=reliability(margins(*scores, beta=beta)),
        drift=drift,
    )


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


def group_by_length(
    policy: Logprobs, reference: Logprobs, examples: Sequence[PreferenceExample]
) -> list[LengthGroup]:
    """Wins where chosen is the longer answer, as long, or shorter; a group may be empty.

    A policy that has learned length is right in the first and wrong in the last. Pairs are matched
    that differ by at most a tenth of the longer response, or by one token. Log-probs are (2, N).
    """
    _, chosen, rejected = lengths(examples).T
    allowed = np.maximum(1, TOLERANCE * np.maximum(chosen, rejected))
    gap = chosen - rejected
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
            ("chosen longer", gap > allowed),
            ("length-matched", np.abs(gap) <= allowed),
            ("chosen shorter", -gap > allowed),
        )
    ]


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); sound for small counts and for 0 and 1."""
    if trials == 0:
        return 0.0, 1.0
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def spread_prompts(preferences: Sequence[Preference], count: int) -> list[Preference]:
    """At most `count` rows of different prompts, evenly spread over the file."""
    rows = list({p.prompt: p for p in reversed(preferences)}.values())[::-1]
    count = min(count, len(rows))
    return [rows[(2 * i + 1) * len(rows) // (2 * count)] for i in range(count)]


def held_out_of_run(
    preferences: Sequence[Preference], data: str, record: dict[str, Any]
) -> list[Preference] | None:
    """The rows of a file named `data` that a model was not trained on, by its ``dpo.json``.

    None where the model was trained on another file, by its name or its ids.
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


def setting_of_run(record: dict[str, Any], key: str) -> Any:
    """A number among the settings of the run that made a model, or that setting's default."""
    default = getattr(RunConfig, key)
    settings = record.get("settings")
    value = settings.get(key) if isinstance(settings, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return default
    if not math.isfinite(value) or value <= 0:
        return default
    return int(value) if isinstance(default, int) else value


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
