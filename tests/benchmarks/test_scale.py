"""One thing grows at a time, and both paths are measured on the same pairs."""

from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from benchmarks import scale
from benchmarks.step import gradient
from benchmarks.workload import Shape
from mlx_dpo.preferences.store import StoredExamples
from mlx_dpo.training.paths import PlainPath, ScoringPath


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


def test_a_case_becomes_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, made = [0.0], gradient

    def timed(model: nn.Module, path: ScoringPath, *rest: Any) -> Any:
        clock[0] += 6 if isinstance(path, PlainPath) else 4
        return made(model, path, *rest)

    monkeypatch.setattr(scale, "gradient", timed)
    monkeypatch.setattr(scale, "now", lambda: clock[0])
    monkeypatch.setattr(scale, "ROUNDS", 1)
    monkeypatch.setattr(scale, "SMALL", Shape(16, 1, 2, 2, 32, 64))
    row = scale.measure(scale.Case("length", "9", 6, 3, 2, 64))
    assert row[:5] == ["length", "9", "3000", "2000", "1.50"]
    assert len(row) == 7


def test_drawing_is_a_pairs_share_of_the_time_and_fetches_each_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched: list[int] = []
    fetch = StoredExamples.__getitem__

    def counted(self: StoredExamples, row: Any) -> Any:
        fetched.append(row)
        return fetch(self, row)

    monkeypatch.setattr(StoredExamples, "__getitem__", counted)
    monkeypatch.setattr(scale, "DRAWN", 3)
    monkeypatch.setattr(scale, "now", iter([10.0, 22.0]).__next__)
    assert scale.drawing(50, tmp_path) == 12 / (3 * 4)
    assert len(set(fetched)) == len(fetched) == 3 * 4
