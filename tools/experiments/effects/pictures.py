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
from tools.experiments.effects.cells import Row, results
from tools.experiments.effects.judged import LONGER, MATCHED, SHORTER, TERCILES, Finished
from tools.experiments.effects.study import OUT
from tools.experiments.pictures import curves

PLACE = Path("docs/effects")
FIRST = 0  # the seed whose steps are drawn


def pictures(done: Finished) -> Iterator[tuple[str, Drawing]]:
    """The name of each picture, and the picture."""
    yield from _steps(done)
    yield from _ches(done)
    yield from _rates(done)
    yield from _length(done)
    yield from _drift(done)


def _steps(done: Finished) -> Iterator[tuple[str, Drawing]]:
    """Margin and log-probs over the steps, of one seed each."""
    steps = {pool: _first_steps(runs) for pool, runs in done.whole() if _is_set(pool)}
    if not steps:
        return
    margins = {pool: [step["reward_margin"] for step in each] for pool, each in steps.items()}
    yield (
        "margin",
        curves("The margin of the training pairs grows", margins, y_label="margin", levels=()),
    )
    pool, each = next(iter(steps.items()))
    change = {
        side: [step[f"{side}_reward"] / 0.1 for step in each] for side in ("chosen", "rejected")
    }
    title = f"Log-probs of {pool}'s training pairs, against the start"
    levels = ((0.0, "start"),)
    yield "logprobs", curves(title, change, y_label="change of log p, nats", levels=levels)


def _first_steps(runs: list[Row]) -> list[Row]:
    steps: list[Row] = next(r["steps"] for r in runs if r["settings"]["seed"] == FIRST)
    return steps


def _is_set(pool: str) -> bool:
    return pool.rpartition("-")[2] not in TERCILES


def _ches(done: Finished) -> Iterator[tuple[str, Drawing]]:
    """Mean change of log p(chosen) by tercile of CHES."""
    bars = []
    for pool, before, found in tables.changes(done):
        means = tables.tercile_means(np.array(before["ches"][1]), found)
        bars.append(Bars(pool, [mean for mean, _ in means], [spread for _, spread in means]))
    if bars:
        title = "Change of log p(chosen), by how alike the answers were (CHES)"
        label = "mean change of log p(chosen), nats"
        yield "ches", bar_chart(title, [f"{name} third" for name in TERCILES], bars, label=label)


def _rates(done: Finished) -> Iterator[tuple[str, Drawing]]:
    """Held-out loss over learning rates, as multiples of the default."""
    series = []
    for pool in done.pools:
        if len(done.runs(pool)) < 2:
            continue
        lines = tables.rate_lines(done, pool)
        default = sorted(line.rate for line in lines)[len(lines) // 2]
        points = [(line.rate / default, line.loss[0]) for line in lines]
        spreads = [(mean - error, mean + error) for mean, error in (x.loss for x in lines)]
        series.append(Series(pool, points, has_dots=True, intervals=spreads))
    if series:
        yield (
            "rates",
            line_chart(
                "Loss on held-out pairs, by learning rate",
                series,
                x_label="learning rate, multiples of the default",
                y_label="held-out loss, nats",
                levels=((math.log(2), "log 2"),),
                is_log=True,
            ),
        )


def _length(done: Finished) -> Iterator[tuple[str, Drawing]]:
    """Accuracy by which answer is longer."""
    for pool, where, found in done.measured():
        groups = found.length_groups()
        names = [name for name in (LONGER, MATCHED, SHORTER) if len(groups[name])]
        bars = [
            Bars(measure, [float(found.rights[measure][:, groups[name]].mean()) for name in names])
            for measure in ("log-prob before", "reward")
        ]
        title = f"Right pairs by length: trained on {pool}, {where}"
        yield "length", bar_chart(title, names, bars, label="share right", x_range=(0, 1))
        return


def _drift(done: Finished) -> Iterator[tuple[str, Drawing]]:
    """Reward accuracy over drift, a dot a learning rate."""
    series = []
    for pool in done.pools:
        lines = [line for line in tables.rate_lines(done, pool) if line.kl is not None]
        points = [(line.kl or 0.0, line.accuracy[0]) for line in lines]
        if len(points) > 1:
            series.append(Series(pool, sorted(points), has_dots=True))
    if series:
        yield (
            "drift",
            line_chart(
                "What drift buys: a dot a learning rate",
                series,
                x_label="KL from the reference, nats a token",
                y_label="reward accuracy, held out",
                levels=((0.5, "chance"),),
            ),
        )


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=Path, default=OUT, help="folder of the cells")
    parser.add_argument("--out", type=Path, default=PLACE, help="folder of the pictures")
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    for name, drawing in pictures(Finished(results(words.results))):
        file = words.out / f"{name}.svg"
        write_file(file, standalone(drawing))
        print(f"{file}: {drawing.title}")


if __name__ == "__main__":
    main()
