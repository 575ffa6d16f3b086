"""A memory profile's picture shows its peak and every phase, however many samples there are."""

import pytest

from mlx_dpo.insight.report.memory import profile_charts
from mlx_dpo.runs.meter import MemorySample
from tests.insight.test_charts import SVG, lines, parsed, texts

MIB = 2**20


def test_thinning_loses_no_peak_and_joins_no_two_visits_of_a_phase() -> None:
    visits = ("reference", "forward", "backward", "update", "forward", "backward", "update")
    samples = [
        MemorySample(visit + part / 1000, phase, MIB * (1 + part % 7))
        for visit, phase in enumerate(visits)
        for part in range(500)
    ]
    samples[3 * 500 + 200] = MemorySample(3.2, "update", 16 * MIB)
    profile = {"peak_bytes": 16 * MIB, "held_bytes": {"weights": MIB, "rest": MIB // 2}}
    over_time, components = profile_charts(profile, samples)
    assert {"other", "forward", "backward", "update", "peak 16"} <= set(texts(over_time))
    paths = {path.get("class"): path.get("d", "") for path in parsed(over_time).iter(f"{SVG}path")}
    assert [paths[f"line s{number}"].count("M") for number in (1, 2, 3, 4)] == [1, 2, 2, 2]
    drawn = [lines(over_time, f"line s{number}")[-1] for number in (1, 2, 3, 4)]  # after its legend
    assert sum(map(len, drawn)) < len(samples) / 5
    highest = min(y for points in drawn for _, y in points)
    assert highest == pytest.approx(lines(over_time, "level")[0][0][1], abs=0.11)
    assert {"weights", "activations, rest"} <= set(texts(components))
