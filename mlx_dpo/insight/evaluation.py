"""A policy beside its reference on pairs: all that `mlx_dpo eval` shows, gathered by `assess`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.errors import DataError
from mlx_dpo.insight.calibration import Reliability, reliability
from mlx_dpo.insight.displacement import Displacement, displaced
from mlx_dpo.insight.drift import Drift, measure_drift
from mlx_dpo.insight.scoring import LoadedModel, check_same_tokens, score_pairs
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.preferences.scores import (
    GroupScore,
    LengthControlled,
    LengthGroup,
    Logprobs,
    group_by_length,
    length_controlled,
    margins,
    score_groups,
)
from mlx_dpo.records import EncodedPairs, Preference
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.training.self_check import Choice

# Called with what is being done, how much of it there is, and how much more is done.
ShowProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Assessment:
    """A policy beside its reference, on pairs.

    Attributes:
        pairs: The pairs, and what became of the rows they came from.
        policy, reference: float32 (2, N), log-probs under each.
        choice: How the policy's log-probs were computed, and why not faster.
        groups: Scores of all pairs and of each kind.
        lengths: Wins where chosen is longer, as long, shorter.
        displacement: Chosen answers that are less likely under the policy.
        calibration: Whether confidence and outcome agree.
        drift: Divergence on the policy's own answers; None where no prompt was answered.
    """

    pairs: EncodedPairs
    policy: Logprobs
    reference: Logprobs
    choice: Choice
    groups: list[GroupScore]
    lengths: list[LengthGroup]
    displacement: Displacement
    calibration: Reliability
    drift: Drift | None

    @property
    def length_controlled(self) -> LengthControlled | None:
        """Reward accuracy if either answer were the longer one equally often."""
        longer, _, shorter = ((group.reward_wins, group.num_pairs) for group in self.lengths)
        return length_controlled(longer, shorter)


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
        displacement=displaced(*scores, pairs, (policy.model, reference.model), policy.chat),
        calibration=reliability(margins(*scores, beta=beta)),
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
