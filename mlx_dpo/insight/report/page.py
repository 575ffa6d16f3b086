"""From a run's folder to a page that opens from disk: no script, no network, one file."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from markupsafe import Markup

from mlx_dpo.errors import MlxDpoError
from mlx_dpo.files import write_file
from mlx_dpo.insight.audit import bias
from mlx_dpo.insight.audit.bias import check_length
from mlx_dpo.insight.charts import (
    Bars,
    Point,
    Reliability,
    Series,
    bar_chart,
    line_chart,
    reliability_diagram,
)
from mlx_dpo.insight.collapse import reward_signs
from mlx_dpo.insight.drawing import MOST_COLOURS, STYLE, swatch
from mlx_dpo.insight.evaluation import (
    Calibration,
    GroupScore,
    calibrate,
    score_groups,
    wilson_interval,
)
from mlx_dpo.insight.report.record import Record, Rows, read_run
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.runs.config import RunConfig

if TYPE_CHECKING:
    from mlx_dpo.insight.sweep import Failed, Outcome

NAME = "report.html"


def write_report(
    folders: Sequence[Path],
    out: Path | None = None,
    sweep: "Sequence[Outcome]" = (),
    failed: "Sequence[Failed]" = (),
) -> Path:
    """Write the page of one run, or of some one after the other.

    Args:
        folders: Run folders, at least one.
        out: The file; by default `report.html` in the first folder.
        sweep: What each beta came to, where the runs are a sweep.
        failed: Betas of it without a finished run.

    Raises:
        UsageError: If a folder holds no run.
        DiskError: If the page can't be written.
    """
    path = out or folders[0] / NAME
    write_file(path, render([read_run(folder) for folder in folders], sweep, failed))
    return path


def render(
    runs: Sequence[Record], sweep: "Sequence[Outcome]" = (), failed: "Sequence[Failed]" = ()
) -> str:
    """The page as text. Whatever comes from data or a model is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    source = files("mlx_dpo.insight.report").joinpath("page.html").read_text(encoding="utf-8")
    names = _names([run.folder for run in runs])
    is_overlaid = 1 < len(runs) <= MOST_COLOURS
    page = environment.from_string(source).render(
        runs=[_parts(run) for run in runs],
        names=names,
        together=[Markup(svg) for svg in curves_together(runs)] if is_overlaid else [],
        swatches=[Markup(swatch(number)) for number, _ in enumerate(runs, 1)],
        plot_style=Markup(STYLE),
        sweep=[Markup(svg) for svg in _against_beta(sweep)] if sweep else [],
        outcomes=sweep,
        failed=failed,
    )
    # A lone surrogate, which JSON may hold, is no text that a file can.
    return page.encode("utf-8", "replace").decode()


def _names(folders: Sequence[Path]) -> list[str]:
    """What the page calls each run: its folder, with the one above where the names are one."""
    names = [folder.name for folder in folders]
    is_clear = len(set(names)) == len(set(folders))
    return names if is_clear else [f"{folder.parent.name}/{folder.name}" for folder in folders]


def _against_beta(outcomes: "Sequence[Outcome]") -> list[str]:
    """Margin, accuracy, drift and length of a sweep."""
    by_beta = sorted(outcomes, key=lambda one: one.beta)
    sft_length = by_beta[0].drift.reference_length

    def chart(title: str, unit: str, values: list[float], **options: Any) -> str:
        points = [(one.beta, value) for one, value in zip(by_beta, values, strict=True)]
        lines = [Series("", points, has_dots=True)]
        x_label = "\u03b2, logarithmic"
        return line_chart(title, lines, x_label=x_label, y_label=unit, is_log=True, **options)

    accuracy = [one.score.reward_accuracy for one in by_beta]
    length = [one.drift.policy_length for one in by_beta]
    return [
        chart("Log-ratio margin, held out", "nats", [o.score.margin / o.beta for o in by_beta]),
        chart("Reward accuracy, held out", "share of pairs", accuracy, y_range=(0.0, 1.0)),
        chart("Drift: KL a token", "nats", [o.drift.kl_per_token for o in by_beta]),
        chart("Answer length", "tokens", length, levels=[(sft_length, "SFT")]),
    ]


def _parts(run: Record) -> dict[str, Any]:
    has_pairs = run.policy.size > 0
    beta = run.config.beta
    kinds = [kind or "(none)" for kind in run.kinds]
    groups = score_groups(run.policy, run.reference, kinds, beta=beta) if has_pairs else []
    pictures = curves(run) if run.steps else []
    if groups:
        pictures.append(_accuracy_chart(groups))
    calibration = None
    if has_pairs:
        gained = run.policy.astype("float64") - run.reference
        calibration = calibrate(beta * (gained[0] - gained[1]))
        pictures.append(_calibration_chart(calibration))
    length, histogram = _length(run)
    return {
        "run": run,
        "command": command(run.config),
        "groups": groups,
        "calibration": calibration,
        "pictures": [Markup(svg) for svg in [*pictures, *histogram]],
        "length": length,
        "warnings": _warnings(run),
        "cost": cost_of(run.timings),
    }


def command(config: RunConfig) -> str:
    """What to type for the same run once more: the settings that are not the defaults."""
    words = ["mlx_dpo", "train"]
    given = {k: v for k, v in asdict(config).items() if k not in ("run_dir", "out", "overwrite")}
    for setting in fields(config):
        value = given.get(setting.name)
        if value is None or (value == setting.default and setting.name not in ("model", "data")):
            continue
        name = f"--{setting.name.replace('_', '-')}"
        words += [name] if value is True else [name, str(value)]
    return shlex.join(words)


def _accuracy_chart(groups: Sequence[GroupScore]) -> str:
    return bar_chart(
        "Log-prob accuracy by kind, held out",
        [group.name for group in groups],
        [
            Bars("SFT", [group.logprob_accuracy_before for group in groups]),
            Bars("DPO", [group.logprob_accuracy_after for group in groups]),
        ],
        label="share with log p(chosen) > log p(rejected)",
        x_range=(0.0, 1.0),
    )


def _calibration_chart(found: Calibration) -> str:
    points = [
        Reliability(b.confidence, b.right / b.num_pairs, wilson_interval(b.right, b.num_pairs))
        for b in found.bins
    ]
    return reliability_diagram("Calibration, held out", points)


def _length(run: Record) -> tuple[str, list[str]]:
    """The audit's word on length, where the data are still what and where they were."""
    try:
        rows = read_preferences(str(run.config.data), drop_bad=run.config.drop_bad)
    except MlxDpoError as error:
        return f"not checked: {error}", []
    found = bias.in_words(rows)
    check = check_length(rows, found)
    bars = bias.histogram(found.gaps)
    chart = bar_chart(
        "Length of chosen minus rejected, whole file",
        [_span(bar) for bar in bars],
        [Bars("pairs", [bar.count for bar in bars])],
        label="pairs, by gap in words",
    )
    return f"{check.verdict}: {check.reason}", [chart]


def _span(bar: bias.Bar) -> str:
    if bar.low is None:
        return f"{bar.high:+d} or less"
    if bar.high is None:
        return f"{bar.low:+d} or more"
    return f"{bar.low:+d}" if bar.low == bar.high else f"{bar.low:+d} to {bar.high:+d}"


def _warnings(run: Record) -> list[str]:
    found = reward_signs(run.steps)
    if not run.is_finished:
        found.append(f"the run is not finished: {len(run.steps)} steps are recorded")
    if not run.policy.size:
        found.append("no pair was held out: nothing here says how it does on unseen pairs")
    return found


# --- What a run cost: its time by phase, its memory, and what padding
# added and sharing saved.


PHASES = {
    "data_seconds": "data",
    "reference_seconds": "reference",
    "forward_backward_seconds": "forward and backward",
    "update_seconds": "update",
}


@dataclass(frozen=True)
class Cost:
    """Sums over the steps of a run.

    Attributes:
        steps: Steps that were timed.
        seconds: All of them.
        pairs: Pairs trained on.
        phases: Name and seconds of each; what is in none of them is the last, "the rest".
        peak: GiB, the most that MLX's arrays took.
        peak_step: The step, counted from 1, that first took it.
        padding: Tokens computed for each real one; None in runs that did not count.
        unshared: Tokens it would have been with each prompt read for each response, for each one
            computed.
    """

    steps: int
    seconds: float
    pairs: int
    phases: list[tuple[str, float]]
    peak: float
    peak_step: int
    padding: float | None
    unshared: float | None


def cost_of(timings: list[dict[str, Any]]) -> Cost | None:
    """The cost of a run by its timings, with `seconds`, `pairs` and `peak_bytes` in each row.

    None where no step was timed.
    """
    if not timings:
        return None

    def total(key: str) -> float:
        return float(sum(row.get(key, 0) for row in timings))

    seconds = total("seconds")
    phases = [(name, total(key)) for key, name in PHASES.items() if key in timings[-1]]
    phases.append(("the rest", max(0.0, seconds - sum(spent for _, spent in phases))))
    largest = max(timings, key=lambda row: row["peak_bytes"])  # the first of equals
    real, computed = total("real_tokens"), total("computed_tokens")
    return Cost(
        steps=len(timings),
        seconds=seconds,
        pairs=int(total("pairs")),
        phases=phases,
        peak=largest["peak_bytes"] / 2**30,
        peak_step=largest["step"] + 1,
        padding=computed / real if real else None,
        unshared=total("unshared_tokens") / computed if computed else None,
    )


# --- The curves of a run.


_MOST_POINTS = 300  # of a line; a page of a long run stays small
_STEP = "optimizer step"


def curves(run: Record) -> list[str]:
    """Loss, rewards, margin, accuracy, learning rate and gradient norm, as SVG."""
    steps, held_out = run.steps, run.held_out

    def chart(title: str, unit: str, key: str, evaluated: str | None, **options: object) -> str:
        lines = [_smooth("training", steps, key)]
        if evaluated and held_out:
            lines.append(Series("held out", _points(held_out, evaluated), has_dots=True))
        return line_chart(title, lines, x_label=_STEP, y_label=unit, **options)  # type: ignore[arg-type]

    unit = "\u03b2 \u00d7 nats"
    rewards = [_smooth(n, steps, f"{n}_reward") for n in ("chosen", "rejected")]
    return [
        chart("Loss", "nats", "loss", "loss", levels=[(math.log(2), "log 2: untrained")]),
        line_chart("Rewards, training pairs", rewards, x_label=_STEP, y_label=unit),
        chart("Reward margin", unit, "reward_margin", "reward_margin"),
        chart("Reward accuracy", "share of pairs", "accuracy", "accuracy", y_range=(0.0, 1.0)),
        line_chart("Learning rate", [_plain(steps, "lr")], x_label=_STEP, y_label="a step"),
        chart("Gradient norm, before clipping", "L2", "grad_norm", None),
    ]


def curves_together(runs: Sequence[Record]) -> list[str]:
    """The curves of several runs in one picture each; a run has one colour in all of them.

    Rewards are in units of beta. Of runs with different betas the log-ratios are drawn instead,
    which can be compared. Held-out accuracy is drawn where a run was evaluated more than once.
    """
    is_one_beta = len({run.config.beta for run in runs}) == 1
    word, unit = ("reward", "\u03b2 \u00d7 nats") if is_one_beta else ("log-ratio", "nats")

    def chart(title: str, unit: str, key: str, **options: object) -> str:
        lines = [Series(run.folder.name, _smooth("", run.steps, key).points) for run in runs]
        return line_chart(title, lines, x_label=_STEP, y_label=unit, has_legend=False, **options)  # type: ignore[arg-type]

    def rewards(title: str, key: str) -> str:
        lines = []
        for run in runs:
            scale = 1.0 if is_one_beta else run.config.beta
            points = [(step, y / scale) for step, y in _smooth("", run.steps, key).points]
            lines.append(Series(run.folder.name, points))
        return line_chart(title, lines, x_label=_STEP, y_label=unit, has_legend=False)

    return [
        chart("Loss, training", "nats", "loss", levels=[(math.log(2), "log 2: untrained")]),
        rewards(f"{word.capitalize()} margin, training", "reward_margin"),
        rewards(f"Chosen {word}, training", "chosen_reward"),
        rewards(f"Rejected {word}, training", "rejected_reward"),
        *_held_out_accuracy(runs),
        chart("Gradient norm, before clipping", "L2", "grad_norm"),
    ]


def _held_out_accuracy(runs: Sequence[Record]) -> list[str]:
    if all(len(run.held_out) < 2 for run in runs):
        return []  # a dot a run says less than the tables do
    lines = [
        Series(run.folder.name, _points(run.held_out, "accuracy"), has_dots=True) for run in runs
    ]
    return [
        line_chart(
            *("Reward accuracy, held out", lines),
            x_label=_STEP,
            y_label="share of pairs",
            y_range=(0.0, 1.0),
            has_legend=False,
        )
    ]


def _points(rows: Rows, key: str) -> list[Point]:
    return [(row["step"] + 1, float(row[key])) for row in rows]


def _plain(rows: Rows, key: str) -> Series:
    return Series(key, _thinned(_points(rows, key)))


def _smooth(name: str, rows: Rows, key: str) -> Series:
    """A running mean over a twentieth of the run, in front of the values themselves."""
    points = _points(rows, key)
    reach = len(points) // 40
    if not reach:
        return Series(name, points)
    means = []
    for place, (step, _) in enumerate(points):
        near = [y for _, y in points[max(0, place - reach) : place + reach + 1]]
        means.append((step, sum(near) / len(near)))
    return Series(name, _thinned(means), behind=_thinned(points))


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most so many points: means of neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [(g[len(g) // 2][0], sum(y for _, y in g) / len(g)) for g in groups]
