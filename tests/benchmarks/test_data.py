"""Pairs are the same every time, and a second load tokenizes nothing."""

import json
from pathlib import Path

import pytest

from benchmarks import data
from tests.runs.conftest import ORACLE


def test_rows_are_the_same_every_time_and_all_different() -> None:
    rows = list(data.rows(30))
    assert rows == list(data.rows(30))
    assert len({row["prompt"] for row in rows}) == 30


def test_a_second_load_finds_the_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data.rows(20)))
    first, second = (data.measure("pairs.jsonl", str(ORACLE), visit=True) for _ in range(2))
    assert first["rows"] == second["rows"] == 20
    assert first["tokens"] == second["tokens"] > 20 * 100
    assert first["worker"] > second["worker"] == 0
