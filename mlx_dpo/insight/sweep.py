"""What each run of a beta sweep came to."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_dpo.files import write_file
from mlx_dpo.insight.collapse import reward_signs
from mlx_dpo.insight.drift import Drift, drift_along, sampled
from mlx_dpo.insight.evaluation import GroupScore, score_groups, spread_prompts
from mlx_dpo.insight.report.record import Record, read_run
from mlx_dpo.insight.scoring import Done, Judged, in_turn, open_model
from mlx_dpo.preferences.reader import read_rows
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.runs.callbacks import ANSWER_TOKENS

_FILE = "drift.json"  # in a run's folder, so that it goes when the run goes
_SEED = 0


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


@dataclass(frozen=True)
class Failed:
    """A beta whose run ended in a loss or gradient that is not finite, and where."""

    beta: float
    reason: str


def look(
    places: Sequence[Path],
    num_prompts: int,
    *,
    begin: Callable[[Path, int], None] = lambda place, count: None,
    after_prompts: Done = lambda count: None,
) -> list[Outcome]:
    """Judge the finished runs of a sweep, which are alike but for beta.

    The reference answers once for all of them. What was measured before is read, not measured.

    Args:
        places: Each holds a `run` and its `model`.
        num_prompts: Held-out prompts that are answered.
        begin: Called before a run's answers are sampled, with how many.
        after_prompts: Called with how many more prompts a policy has answered.

    Raises:
        UsageError: If a file or model is not there.
    """
    runs = {place: read_run(place / "run") for place in places}
    asked = {"num_prompts": num_prompts, "max_tokens": ANSWER_TOKENS, "seed": _SEED}
    drifts = {place: _read(place, asked) for place in places}
    if missing := [place for place in places if drifts[place] is None]:
        reference = open_model(str(runs[missing[0]].config.model))
        prompts = _held_out_prompts(runs[missing[0]], reference, num_prompts)
        others = sampled(reference, prompts, max_tokens=ANSWER_TOKENS, seed=_SEED)
        waiting = iter(missing)

        def measure(policy: Judged) -> None:
            place = next(waiting)
            begin(place, len(prompts))
            answers = sampled(
                *(policy, prompts),
                max_tokens=ANSWER_TOKENS,
                seed=_SEED,
                after_prompts=after_prompts,
            )
            drift = drift_along(policy.model, reference.model, prompts, answers, others)
            drifts[place] = drift
            record = {"asked": asked, "drift": asdict(drift)}
            write_file(place / "run" / _FILE, json.dumps(record, indent=2) + "\n")

        in_turn([str(place / "model") for place in missing], measure)
    return [_outcome(runs[place], drift) for place in places if (drift := drifts[place])]


def _read(place: Path, asked: dict[str, int]) -> Drift | None:
    """The drift of a run where it was measured as it is now asked for."""
    try:
        record = json.loads((place / "run" / _FILE).read_text(encoding="utf-8"))
        return Drift(**record["drift"]) if record["asked"] == asked else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _held_out_prompts(run: Record, judged: Judged, count: int) -> list[list[int]]:
    held_out = set(run.split["held_out"])
    source = run.config.eval_data or str(run.config.data)
    rows = read_rows(source, Problems(), compare=False)
    kept = [row.preference for row in rows if row.preference and row.preference.id in held_out]
    return [judged.chat.prompt_ids(row.prompt) for row in spread_prompts(kept, count)]


def _outcome(run: Record, drift: Drift) -> Outcome:
    beta = run.config.beta
    score = score_groups(run.policy, run.reference, ["all"] * len(run.kinds), beta=beta)[0]
    return Outcome(beta, score, drift, [*reward_signs(run.steps), *drift.signs])
