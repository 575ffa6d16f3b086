"""Pictures of a report put their values where they belong."""

import pytest

from mlx_dpo.insight.calibration import ConfidenceBin, Reliability
from mlx_dpo.insight.report.pictures import calibration_diagram
from tests.insight.test_charts import SVG, lines, parsed


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
