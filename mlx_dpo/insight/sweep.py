"""Results of each run of a beta sweep: score, drift and warnings."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mlx_dpo.files import check_ordinary, write_file
from mlx_dpo.insight.drift import Drift, measure_drift, sample_answers
from mlx_dpo.insight.evaluation import spread_prompts
from mlx_dpo.insight.report.record import RunRecord, read_run
from mlx_dpo.insight.scoring import (
    CountDone,
    LoadedModel,
    Named,
    in_turn,
    open_model,
    reference_of,
)
from mlx_dpo.models.generate import Completion
from mlx_dpo.preferences.reader import read_rows
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.runs.callbacks import ANSWER_TOKENS
from mlx_dpo.runs.collapse import reward_signs
from mlx_dpo.runs.scores import GroupScore, score_groups

_FILE = "drift.json"  # in a run's folder, so that it goes when the run goes
_SEED = 0


@dataclass(frozen=True)
class BetaOutcome:
    """A finished run of a sweep: score of all held-out pairs, drift, and signs of collapse."""

    beta: float
    score: GroupScore
    drift: Drift
    warnings: list[str]


@dataclass(frozen=True)
class FailedBeta:
    """A beta whose run ended in a loss or gradient that is not finite, and where."""

    beta: float
    reason: str


def sweep_outcomes(
    folders: Sequence[Path],
    num_prompts: int,
    *,
    begin: Callable[[Path, int], None] = lambda folder, count: None,
    after_prompts: CountDone = lambda count: None,
) -> list[BetaOutcome]:
    """Score the finished runs of a sweep, which are alike but for beta, and measure their drift.

    Each folder holds a `run` and its `model`, which may be an adapter. The reference answers the
    held-out prompts once for all of them. A drift that was measured before is read instead. `begin`
    is called before a run's answers are sampled, with how many; `after_prompts` with how many more
    are answered.

    Raises:
        UsageError: If a file or model is not there.
    """
    runs = {folder: read_run(folder / "run") for folder in folders}
    asked = {"num_prompts": num_prompts, "max_tokens": ANSWER_TOKENS, "seed": _SEED}
    drifts = {folder: _read_drift(folder, asked) for folder in folders}
    if missing := [folder for folder in folders if drifts[folder] is None]:
        policies = [Named(str(folder / "model")) for folder in missing]
        origin = reference_of(policies[0])
        fixed = None if origin is None else open_model(*origin)
        waiting = iter(missing)
        others: list[Completion] = []

        def measure(policy: LoadedModel) -> None:
            folder, reference = next(waiting), fixed or policy.without_adapter()
            prompts = _held_out_prompts(runs[folder], reference, num_prompts)
            others.extend(
                []
                if others
                else sample_answers(reference, prompts, max_tokens=ANSWER_TOKENS, seed=_SEED)
            )
            begin(folder, len(prompts))
            drift = measure_drift(
                *(policy, reference, prompts),
                max_tokens=ANSWER_TOKENS,
                seed=_SEED,
                reference_answers=others,
                after_prompts=after_prompts,
            )
            drifts[folder] = drift
            record = {"asked": asked, "drift": asdict(drift)}
            write_file(folder / "run" / _FILE, json.dumps(record, indent=2) + "\n")

        in_turn(policies, measure)
    return [_outcome(runs[folder], drift) for folder in folders if (drift := drifts[folder])]


def _read_drift(folder: Path, asked: dict[str, int]) -> Drift | None:
    """The drift of a run where it was measured with these settings."""
    check_ordinary(folder / "run" / _FILE)
    try:
        record = json.loads((folder / "run" / _FILE).read_text(encoding="utf-8"))
        return Drift(**record["drift"]) if record["asked"] == asked else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _held_out_prompts(run: RunRecord, loaded: LoadedModel, count: int) -> list[list[int]]:
    held_out = set(run.split["held_out"])
    source = run.config.eval_data or str(run.config.data)
    rows = read_rows(source, Problems(), compare=False)
    usable = [row.preference for row in rows if row.preference and row.preference.id in held_out]
    return [loaded.chat.prompt_ids(row.prompt) for row in spread_prompts(usable, count)]


def _outcome(run: RunRecord, drift: Drift) -> BetaOutcome:
    beta = run.config.beta
    score = score_groups(run.policy, run.reference, ["all"] * len(run.kinds), beta=beta)[0]
    return BetaOutcome(beta, score, drift, [*reward_signs(run.steps), *drift.signs])
