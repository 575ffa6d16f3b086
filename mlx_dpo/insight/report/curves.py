"""The curves of a run."""

import math
from collections.abc import Sequence

from mlx_dpo.insight.plots.charts import Point, Series, line_chart
from mlx_dpo.insight.report.record import Record, Rows

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
