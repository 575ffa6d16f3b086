"""What each run of a beta sweep came to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlx_dpo.insight.evaluation import GroupScore, score_groups
from mlx_dpo.insight.judging.assessment import spread_prompts
from mlx_dpo.insight.judging.drift import Drift, measure_drift
from mlx_dpo.insight.judging.scoring import open_model
from mlx_dpo.insight.report.record import Record, read_run
from mlx_dpo.preferences.problems import Problems
from mlx_dpo.preferences.reader import read_rows
from mlx_dpo.runs.loop import ANSWER_TOKENS, RewardWatch

NUM_PROMPTS = 50  # with 20, chance put the drift of two betas in the wrong order


@dataclass(frozen=True)
class Outcome:
    """One beta.

    Attributes:
        beta: Of the run.
        score: Of all held-out pairs.
        drift: Of the policy from its reference, on held-out prompts.
        warnings: Signs of collapse.
    """

    beta: float
    score: GroupScore
    drift: Drift
    warnings: list[str]


def look(place: Path, after_prompt: Callable[[int], None] = lambda count: None) -> Outcome:
    """Judge a finished run of a sweep: `place` holds its `run` and its `model`.

    Raises:
        UsageError: If a file or model is not there.
    """
    run = read_run(place / "run")
    config = run.config
    policy, reference = open_model(str(place / "model")), open_model(str(config.model))
    held_out = set(run.split["held_out"])
    rows = read_rows(config.eval_data or str(config.data), Problems(), compare=False)
    kept = [row.preference for row in rows if row.preference and row.preference.id in held_out]
    drift = measure_drift(
        policy,
        reference,
        [policy.chat.prompt_ids(row.prompt) for row in spread_prompts(kept, NUM_PROMPTS)],
        max_tokens=ANSWER_TOKENS,
        seed=0,
        after_prompt=after_prompt,
    )
    score = score_groups(run.policy, run.reference, ["all"] * len(run.kinds), beta=config.beta)[0]
    return Outcome(config.beta, score, drift, _warnings(run, drift))


def _warnings(run: Record, drift: Drift) -> list[str]:
    watch = RewardWatch()
    found = [w for row in run.steps if (w := watch.after(row["step"], row)) is not None]
    ratio = drift.policy_length / max(1.0, drift.reference_length)
    if not 0.5 <= ratio <= 2:
        found.append(f"answers are {ratio:.1f} times as long as before")
    if drift.policy_cut > drift.reference_cut + drift.num_prompts // 4:
        found.append(f"{drift.policy_cut} of {drift.num_prompts} answers never end")
    return found
