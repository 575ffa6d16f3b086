"""Pictures of a report put their values where they belong."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_dpo.insight.calibration import ConfidenceBin, Reliability
from mlx_dpo.insight.report.pictures import calibration_diagram, run_curves
from mlx_dpo.insight.report.record import read_run
from tests.insight.test_charts import SVG, lines, parsed
from tests.insight.test_charts import told as told_by


def test_a_curve_is_the_mean_of_its_neighbours_and_broken_where_one_is_not_finite(
    run: Path,
) -> None:
    record = read_run(run)
    keys = ("loss", "chosen_reward", "rejected_reward", "reward_margin", "accuracy", "grad_norm")
    values = [float(n % 7) for n in range(100)]
    values[50] = math.inf
    rows = [{"step": n, "lr": 0.1, **dict.fromkeys(keys, y)} for n, y in enumerate(values)]
    loss, *_ = run_curves(replace(record, steps=rows, held_out=[]))
    told = [text.split("\n") for text in told_by(loss)]
    means = {int(step.split()[-1]): float(line.split("mean ")[1][:-1]) for step, line in told[1:]}
    assert means[11] == pytest.approx(sum(values[8:13]) / 5, abs=1e-3)  # two steps on each side
    assert not {49, 50, 51, 52, 53} & set(means)


def test_the_diagonal_is_where_predicted_and_observed_agree() -> None:
    bins = [ConfidenceBin(num_pairs=20, low=0.7, high=0.8, confidence=0.75, right=15)]
    svg = calibration_diagram(Reliability(bins, ece=0.0, ece_by_chance=0.1))
    ((start, end),) = lines(svg, "level")
    (dot,) = parsed(svg).iter(f"{SVG}circle")
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    assert (float(dot.get("cx", 0)), float(dot.get("cy", 0))) == pytest.approx(middle, abs=0.11)
    ((high, low),) = lines(svg, "whisker")
    assert high[0] == low[0] == pytest.approx(middle[0], abs=0.11)
    assert min(high[1], low[1]) < middle[1] < max(high[1], low[1])
