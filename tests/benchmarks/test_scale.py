"""One thing grows at a time, and both paths are measured on the same pairs."""

from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.workload import Shape


def test_pairs_of_a_case_are_of_its_lengths_and_vocabulary() -> None:
    case = scale.Case("", "", prompt=5, response=3, batch=2, vocabulary=20)
    pairs = scale.pairs_of(case)
    assert [list(map(len, pair)) for pair in pairs] == [[5, 3, 3]] * 2
    assert max(token for pair in pairs for ids in pair for token in ids) < 20
    assert scale.pairs_of(case) == pairs


def test_cases_differ_from_the_usual_one_in_what_they_name() -> None:
    usual = scale.Case("", "")
    for case in scale.cases():
        changed = {name for name in case._fields[2:] if getattr(case, name) != getattr(usual, name)}
        assert len(changed) <= (2 if case.grows == "tokens of a row" else 1)


def test_a_case_becomes_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scale, "ROUNDS", 1)
    monkeypatch.setattr(scale, "SMALL", Shape(16, 1, 2, 2, 32, 64))
    row = scale.measure(scale.Case("length", "9", 6, 3, 2, 64))
    assert row[:2] == ["length", "9"]
    assert float(row[4]) > 0
    assert scale.drawing(50, tmp_path) > 0
