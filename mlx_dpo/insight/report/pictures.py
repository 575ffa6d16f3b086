"""The pictures of a report: curves of runs, results by group and by beta, lengths of the data."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlx_dpo.insight.audit.bias import Measures, histogram
from mlx_dpo.insight.axes import HEIGHT, Interval, axes, dot, line, nice_ticks, text
from mlx_dpo.insight.calibration import Reliability
from mlx_dpo.insight.charts import Bars, Drawing, Point, Series, bar_chart, hit, line_chart
from mlx_dpo.insight.report.record import Rows, RunRecord
from mlx_dpo.insight.sweep import BetaOutcome
from mlx_dpo.preferences.scores import GroupScore, wilson_interval

_MOST_POINTS = 300  # of a line; a page of a long run stays small
_STEP = "optimizer step"
_REWARD_UNIT = "\u03b2 \u00d7 nats"
_UNTRAINED = [(math.log(2), "log 2: untrained")]


def run_curves(run: RunRecord) -> list[Drawing]:
    """Loss, rewards, margin, accuracy, learning rate and gradient norm over the steps.

    Of a run that is not finished the steps to come have their place.
    """
    steps = run.steps
    place: dict[str, Any] = {
        "x_label": _STEP,
        "x_range": None if run.is_finished else (1.0, run.planned_steps),
    }

    def chart(title: str, unit: str, key: str, *, evaluated: bool, **options: Any) -> Drawing:
        lines = [_smooth("training", steps, key)]
        if evaluated and run.held_out:
            lines.append(Series("held out", _points(run.held_out, key), has_dots=True))
        return line_chart(title, lines, y_label=unit, **place, **options)

    rewards = [_smooth(side, steps, f"{side}_reward") for side in ("chosen", "rejected")]
    rate = Series("lr", _thinned(_points(steps, "lr")))
    return [
        chart("Loss", "nats", "loss", evaluated=True, levels=_UNTRAINED),
        line_chart("Rewards, training pairs", rewards, y_label=_REWARD_UNIT, **place),
        chart("Reward margin", _REWARD_UNIT, "reward_margin", evaluated=True),
        chart("Reward accuracy", "share of pairs", "accuracy", evaluated=True, y_range=(0.0, 1.0)),
        line_chart("Learning rate", [rate], y_label="a step", **place),
        chart("Gradient norm, before clipping", "L2", "grad_norm", evaluated=False),
    ]


def curves_together(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Drawing]:
    """The curves of several runs in one picture each; a run has one colour in all of them.

    Rewards are in units of beta. For runs with different betas the log-ratios are drawn instead,
    which can be compared. Held-out loss and accuracy are drawn where a run was evaluated more than
    once, over all steps of the training curves.
    """
    steps = (1.0, max([1.0, *(row["step"] + 1.0 for run in runs for row in run.steps)]))
    is_one_beta = len({run.config.beta for run in runs}) == 1
    word, unit = ("reward", _REWARD_UNIT) if is_one_beta else ("log-ratio", "nats")

    def together(title: str, unit: str, lines: Sequence[Series], **options: Any) -> Drawing:
        options |= {"x_label": _STEP, "x_range": steps, "has_legend": False}
        return line_chart(title, lines, y_label=unit, **options)

    def training(key: str, *, of_rewards: bool = False) -> list[Series]:
        lines = []
        for run, name in zip(runs, names, strict=True):
            scale = run.config.beta if of_rewards and not is_one_beta else 1.0
            points = [(step, y / scale) for step, y in _smooth("", run.steps, key).points]
            lines.append(Series(name, points))
        return lines

    def held_out(key: str) -> list[Series]:
        named = zip(runs, names, strict=True)
        return [Series(name, _points(run.held_out, key), (), True) for run, name in named]

    drawings = [together("Loss, training", "nats", training("loss"), levels=_UNTRAINED)]
    for title, key in (
        (f"{word.capitalize()} margin, training", "reward_margin"),
        (f"Chosen {word}, training", "chosen_reward"),
        (f"Rejected {word}, training", "rejected_reward"),
    ):
        drawings.append(together(title, unit, training(key, of_rewards=True)))
    if any(len(run.held_out) > 1 for run in runs):  # a dot a run says less than the tables do
        drawings += [
            together("Loss, held out", "nats", held_out("loss"), levels=_UNTRAINED),
            together(
                *("Reward accuracy, held out", "share of pairs", held_out("accuracy")),
                y_range=(0.0, 1.0),
            ),
        ]
    return [*drawings, together("Gradient norm, before clipping", "L2", training("grad_norm"))]


def against_beta(outcomes: Sequence[BetaOutcome]) -> list[Drawing]:
    """Margin, accuracy, drift and answer length of a sweep."""
    by_beta = sorted(outcomes, key=lambda outcome: outcome.beta)
    sft_length = by_beta[0].drift.reference_length

    def chart(
        title: str,
        unit: str,
        values: list[float],
        intervals: Sequence[Interval] = (),
        **options: Any,
    ) -> Drawing:
        points = [(o.beta, value) for o, value in zip(by_beta, values, strict=True)]
        lines = [Series("", points, has_dots=True, intervals=intervals)]
        x_label = "\u03b2, logarithmic"
        return line_chart(title, lines, x_label=x_label, y_label=unit, is_log=True, **options)

    accuracy = [o.score.reward_accuracy for o in by_beta]
    sure = [wilson_interval(o.is_right.sum(), o.is_right.size) for o in by_beta]
    length = [o.drift.policy_length for o in by_beta]
    return [
        chart("Log-ratio margin, held out", "nats", [o.score.margin / o.beta for o in by_beta]),
        chart(
            *("Reward accuracy, held out", "share of pairs (95 % interval)", accuracy, sure),
            y_range=(0.0, 1.0),
        ),
        chart("Drift: KL a token", "nats", [o.drift.kl_per_token for o in by_beta]),
        chart("Answer length", "tokens", length, levels=[(sft_length, "SFT")]),
    ]


def accuracy_by_kind(groups: Sequence[GroupScore]) -> Drawing:
    """Log-prob accuracy of each group before and after."""

    def bars(name: str, shares: Sequence[float]) -> Bars:
        counts = [group.num_pairs for group in groups]
        intervals = [wilson_interval(s * n, n) for s, n in zip(shares, counts, strict=True)]
        return Bars(name, shares, intervals)

    return bar_chart(
        "Log-prob accuracy by kind, held out (95 % intervals)",
        [group.name for group in groups],
        [
            bars("SFT", [group.logprob_accuracy_before for group in groups]),
            bars("DPO", [group.logprob_accuracy_after for group in groups]),
        ],
        label="share with log p(chosen) > log p(rejected)",
        x_range=(0.0, 1.0),
    )


def calibration_diagram(calibration: Reliability) -> Drawing:
    """How sure a policy is of its picks against how often they are right, with the diagonal."""
    area = axes(
        nice_ticks(0.5, 1.0),
        nice_ticks(0.0, 1.0),
        x_label="how sure it is of its pick: \u03c3(|margin|)",
        x_range=(0.5, 1.0),
    )
    x, y = area.x, area.y
    marks = [
        *area.marks,
        line(x(0.5), y(0.5), x(1.0), y(1.0), "level"),
        text(x(0.97), y(0.97) + 26, "calibrated", anchor="end"),
    ]
    for each in calibration.bins:
        at = x(each.confidence)
        low, high = wilson_interval(each.right, each.num_pairs)
        marks.append(line(at, y(low), at, y(high), "whisker"))
        marks.append(dot(at, y(each.right / each.num_pairs), "f1"))
        told = f"right {each.right} of {each.num_pairs} ({low:.2f} to {high:.2f})"
        around = (at - 6, y.end, 12.0, y.start - y.end)
        marks.append(hit(around, [f"sure {each.confidence:.2f}", told]))
    y_label = "share of picks that are right (95 % interval)"
    return Drawing("Calibration, held out", y_label, HEIGHT, marks)


def length_histogram(measures: Measures) -> Drawing:
    """Gaps between chosen and rejected of the pairs of ``--data``."""
    bars = histogram(measures.gaps)
    return bar_chart(
        "Length of chosen minus rejected, pairs of --data",
        [bar.label for bar in bars],
        [Bars("pairs", [bar.count for bar in bars])],
        label=f"pairs, by gap in {measures.unit}",
    )


def _points(rows: Rows, key: str) -> list[Point]:
    return [(row["step"] + 1, float(row[key])) for row in rows]


def _smooth(name: str, rows: Rows, key: str) -> Series:
    """A running mean over a twentieth of the run, in front of the values themselves."""
    points = _points(rows, key)
    reach = len(points) // 40
    if not reach:
        return Series(name, points)
    values = np.array([y for _, y in points])
    is_finite = np.isfinite(values)
    at = np.arange(len(points))
    low, high = np.maximum(0, at - reach), np.minimum(len(points), at + reach + 1)
    # Differences of running sums: a window for each point would take time with the square of them.
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(is_finite)])
    is_whole = count[high] - count[low] == high - low
    means = np.where(is_whole, (sums[high] - sums[low]) / (high - low), math.nan).tolist()
    smooth = [(step, mean) for (step, _), mean in zip(points, means, strict=True)]
    return Series(name, _thinned(smooth), behind=_thinned(points))


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_MOST_POINTS` points: means of neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), max(1, size))]
    return [(g[len(g) // 2][0], sum(y for _, y in g) / len(g)) for g in groups]
