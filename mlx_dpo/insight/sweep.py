"""Results of each run of a beta sweep: score, drift and warnings; and which beta to take."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import UsageError
from mlx_dpo.files import write_file
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
from mlx_dpo.paths import check_ordinary
from mlx_dpo.preferences.reader import read_rows
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.preferences.scores import GroupScore, is_taught, margins, score_groups, wilson_interval
from mlx_dpo.runs.callbacks import ANSWER_TOKENS
from mlx_dpo.runs.collapse import reward_signs
from mlx_dpo.runs.config import RunConfig

_FILE = "drift.json"  # in a run's folder, so that it goes when the run goes
_SEED = 0


@dataclass(frozen=True)
class BetaOutcome:
    """A finished run of a sweep.

    Attributes:
        beta: Of the run.
        score: Of all held-out pairs.
        is_right: bool (N,), whether each held-out pair has a margin above 0.
        drift: Of sampled answers.
        warnings: Signs of collapse.
    """

    beta: float
    score: GroupScore
    is_right: npt.NDArray[np.bool_]
    drift: Drift
    warnings: list[str]


@dataclass(frozen=True)
class FailedBeta:
    """A beta whose run ended in a loss or gradient that is not finite, and where."""

    beta: float
    reason: str


@dataclass(frozen=True)
class Advice:
    """Which beta to take.

    Attributes:
        beta: None where no beta of the sweep is worth it.
        is_clear: Whether it is surely better than the others.
        sentence: The choice.
        reason: Its evidence, and what it is worth.
    """

    beta: float | None
    is_clear: bool
    sentence: str
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
        UsageError: If a file or model is not there, or the runs hold out different pairs.
    """
    runs = {folder: read_run(folder / "run") for folder in folders}
    if len({tuple(run.split["held_out"]) for run in runs.values()}) > 1:
        raise UsageError(
            f"{folders[0].parent}: its betas held out different pairs: the data has changed "
            "between them; start the sweep again, with another --run-dir"
        )
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
    data, own = run.config.files
    rows = read_rows(own or data, Problems(), compare=False)
    usable = [row.preference for row in rows if row.preference and row.preference.id in held_out]
    return [loaded.chat.prompt_ids(row.prompt) for row in spread_prompts(usable, count)]


def _outcome(run: RunRecord, drift: Drift) -> BetaOutcome:
    beta = run.config.beta
    judged = is_taught(run.kinds, run.untaught)
    policy, reference = run.policy[:, judged], run.reference[:, judged]
    score = score_groups(policy, reference, ["all"] * policy.shape[1], beta=beta)[0]
    is_right = margins(policy, reference, beta=beta) > 0
    return BetaOutcome(beta, score, is_right, drift, [*reward_signs(run.steps), *drift.signs])


def advise(outcomes: Sequence[BetaOutcome]) -> Advice:
    """Which beta of a sweep to take, by reward accuracy on the held-out pairs.

    Not by held-out loss, which contains beta: the same policy has another loss under another beta.
    Two betas are compared on the pairs on which just one of them is right. Where several may be
    equal, the default beta is kept, or the one with the least drift. Runs that show signs of
    collapse are left out.
    """
    sound = [outcome for outcome in outcomes if not outcome.warnings]
    if len(outcomes) == 1:
        sentence = f"Nothing to choose: beta {outcomes[0].beta:g} has no other beside it."
        return Advice(None, False, sentence, "A sweep takes a list: --beta 0.05,0.1,0.3.")
    if not sound:
        return Advice(
            *(None, False, "No beta to take: every run shows signs of collapse."),
            "Lower --learning-rate, or train for fewer steps.",
        )
    best = max(sound, key=lambda outcome: (_wins(outcome), -outcome.drift.kl_per_token))
    low, high = wilson_interval(_wins(best), best.is_right.size)
    record = f"beta {best.beta:g} is right on {_wins(best)} of {best.is_right.size} held-out pairs "
    record += f"(95 % interval {low:.2f} to {high:.2f})"
    if low <= 0.5:
        return Advice(
            *(None, False, "No beta is surely better than chance."),
            f"The best, {record}. Before beta, look at --learning-rate and --epochs, or hold out "
            "more pairs.",
        )
    record = record.capitalize()
    caveat = (
        "The choice was made on these pairs, so their figures flatter it: measure it with "
        "mlx_dpo eval on pairs that no run has seen."
    )
    equal = [other for other in sound if other is best or not _is_surely_better(best, other)]
    if len(equal) == 1:
        sentence = (
            f"Take beta {best.beta:g}: better than the others on held-out pairs, beyond chance."
        )
        return Advice(best.beta, True, sentence, f"{record}. {caveat}")
    usual = [outcome for outcome in equal if outcome.beta == RunConfig.beta]
    kept = (usual or sorted(equal, key=lambda outcome: outcome.drift.kl_per_token))[0]
    word, why = ("keep", "the default") if usual else ("take", "which drifts least")
    others = ", ".join(f"beta {o.beta:g} on {_wins(o)}" for o in equal if o is not best)
    return Advice(
        *(kept.beta, False, f"No clear winner: {word} beta {kept.beta:g}, {why}."),
        f"{record}, {others}: these differences may be chance. {caveat}",
    )


def _wins(outcome: BetaOutcome) -> int:
    return int(outcome.is_right.sum())


def _is_surely_better(one: BetaOutcome, other: BetaOutcome) -> bool:
    """Whether one wins most of the pairs on which they disagree, beyond chance.

    McNemar's exact test, 2.5 % on this side: the interval of a share is too narrow for five pairs.
    """
    wins = int((one.is_right & ~other.is_right).sum())
    disagreed = int((one.is_right ^ other.is_right).sum())
    as_many = sum(math.comb(disagreed, count) for count in range(wins, disagreed + 1))
    return 40 * as_many <= 1 << disagreed
