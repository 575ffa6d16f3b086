"""The memory of a long run: what is recorded, and its slope."""

import pytest

from benchmarks import footprint
from benchmarks.footprint import EVERY, WARM, Row


def test_the_slope_leaves_the_warm_up_out() -> None:
    rows = [Row(EVERY * i, 7 * EVERY * i + (10**9 if i <= WARM else 0), 3, 0) for i in range(1, 21)]
    assert footprint.slope(rows, "resident") == pytest.approx(7)
    assert footprint.slope(rows, "active") == pytest.approx(0, abs=1e-9)


def test_memory_is_recorded_every_so_many_steps() -> None:
    recorder = footprint.Recorder(every=2)
    for step in range(5):
        recorder.stepped(step, {}, {})
    assert [row.step for row in recorder.rows] == [2, 4]
    assert all(row.resident > 2**20 for row in recorder.rows)
