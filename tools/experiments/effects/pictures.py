"""Draw the six pictures of docs/effects.md from the finished cells of a study.

    python -m tools.experiments.effects.pictures

A picture whose cells are not there is left out. Each is one SVG file for light and dark pages.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlx_dpo.files import write_file
from mlx_dpo.insight.charts import Bars, Drawing, Series, bar_chart, line_chart, standalone
from tools.experiments.effects import tables
from tools.experiments.effects.cells import results
from tools.experiments.effects.judged import LONGER, MATCHED, SHORTER, TERCILES, Finished
from tools.experiments.effects.study import OUT
from tools.experiments.pictures import curves

PLACE = Path("docs/effects")
FIRST = 0  # the seed whose steps are drawn
OF_DEFAULT = "learning rate, multiples of the default"


def pictures(done: Finished) -> Iterator[tuple[str, list[Drawing]]]:
    """The name of each picture, and its charts."""
    for name, charts in (
        ("margin", _margin(done)),
        ("logprobs", _logprobs(done)),
        ("ches", _ches(done)),
        ("length", _length(done)),
        ("rates", _rates(done)),
        ("drift", _drift(done)),
    ):
        if drawn := list(charts):
            yield name, drawn


def _margin(done: Finished) -> Iterator[Drawing]:
    """The margin over the steps, of one seed of each public set."""
    margins = {}
    for pool, runs in done.public():
        (first,) = (run for run in runs if run["settings"]["seed"] == FIRST)
        margins[pool] = [step["reward_margin"] for step in first["steps"]]
    if margins:
        yield curves("The margin of the training pairs", margins, y_label="margin", levels=())


def _logprobs(done: Finished) -> Iterator[Drawing]:
    """Log-probs of held-out answers over learning rates, against the start."""
    for pool, _ in done.public():
        lines, default = tables.rate_lines(done, pool), done.default_rate(pool)
        if len(lines) < 2 or default is None:
            continue
        yield line_chart(
            f"Held-out answers of {pool}, against the start",
            [
                Series(name, [(x.rate / default, x.change[side][0]) for x in lines], has_dots=True)
                for side, name in enumerate(("chosen", "rejected"))
            ],
            x_label=OF_DEFAULT,
            y_label="change of log p, nats",
            levels=((0.0, ""),),
            is_log=True,
        )


def _ches(done: Finished) -> Iterator[Drawing]:
    """Mean change of log p(chosen) by tercile of CHES, of sums and of means."""
    names = [f"{name} third" for name in TERCILES]
    for number, kind in enumerate(("sums", "means")):
        bars = []
        for pool, before, found in tables.changes(done):
            means = tables.tercile_means(np.array(before["ches"][number]), found)
            bars.append(Bars(pool, [mean for mean, _ in means], [spread for _, spread in means]))
        if bars:
            title = f"Change of log p(chosen), by CHES of {kind}"
            bounds = [bound for each in bars for spread in each.intervals for bound in spread]
            reach = (min(0.0, *bounds), max(bounds))
            label = "mean change of log p(chosen), nats"
            yield bar_chart(title, names, bars, label=label, x_range=reach)


def _length(done: Finished) -> Iterator[Drawing]:
    """Accuracy by which answer is longer, on pairs that were never trained on."""
    public = [pool for pool, _ in done.public()]
    last = {pool: (where, found) for pool, where, found in done.measured() if pool in public}
    for pool, (where, found) in last.items():
        groups = found.length_groups()
        names = [name for name in (LONGER, MATCHED, SHORTER) if len(groups[name])]
        bars = [
            Bars(shown, [float(found.rights[measure][:, groups[name]].mean()) for name in names])
            for measure, shown in (("log-prob before", "before"), ("reward", "by reward, after"))
        ]
        title = f"Trained on {pool}, measured on {where}"
        yield bar_chart(title, names, bars, label="share of pairs right", x_range=(0, 1))


def _rates(done: Finished) -> Iterator[Drawing]:
    """Held-out loss over learning rates, as multiples of the default."""
    series = []
    for pool in done.pools:
        lines, default = tables.rate_lines(done, pool), done.default_rate(pool)
        if len(lines) < 2 or default is None:
            continue
        points = [(line.rate / default, line.loss[0]) for line in lines]
        spreads = [(mean - error, mean + error) for mean, error in (x.loss for x in lines)]
        series.append(Series(pool, points, has_dots=True, intervals=spreads))
    if series:
        yield line_chart(
            "Loss on held-out pairs",
            series,
            x_label=OF_DEFAULT,
            y_label="held-out loss, nats",
            levels=((math.log(2), "log 2"),),
            is_log=True,
        )


def _drift(done: Finished) -> Iterator[Drawing]:
    """Drift over the held-out margin, a dot a learning rate."""
    series = []
    for pool in done.pools:
        lines = [line for line in tables.rate_lines(done, pool) if line.kl is not None]
        if len(lines) > 1:
            points = sorted((line.margin[0], line.kl or 0.0) for line in lines)
            series.append(Series(pool, points, has_dots=True))
    if series:
        yield line_chart(
            "What a margin costs: a dot a learning rate",
            series,
            x_label="margin of held-out pairs",
            y_label="KL, nats a token",
        )


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=OUT, help="folder of the cells")
    parser.add_argument("--out", type=Path, default=PLACE, help="folder of the pictures")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    for name, drawings in pictures(Finished(results(words.results))):
        file = words.out / f"{name}.svg"
        write_file(file, standalone(*drawings))
        print(f"{file}: {'; '.join(drawing.title for drawing in drawings)}")


if __name__ == "__main__":
    main()
