"""A policy beside the model it was trained from, on pairs: all that `mlx_dpo eval` shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dpo.errors import DataError
from mlx_dpo.insight.evaluation import GroupScore, score_groups
from mlx_dpo.insight.judging.calibration import Calibration, calibrate
from mlx_dpo.insight.judging.drift import Drift, measure_drift
from mlx_dpo.insight.judging.lengths import LengthGroup, group_by_length
from mlx_dpo.insight.judging.scoring import Judged, Logprobs, check_same_tokens, score_pairs
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.records import EncodedPairs, Preference

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
        progress: Told how far it is.

    Raises:
        UsageError: If the models have different tokenizers.
        DataError: If no pair is left to score.
        NonFiniteError: If a log-prob is not finite.
    """
    check_same_tokens(policy.chat, reference)
    pairs = encode_preferences(preferences, policy.chat, max_length=max_length)
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
