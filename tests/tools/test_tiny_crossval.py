"""Folds, intervals and tables of the cross-validation; the training itself is not run here."""

from collections import Counter

import pytest

from mlx_dpo.models.generate import Completion
from mlx_dpo.records import Message, Preference
from mlx_dpo.runs.config import RunConfig
from tools.tiny_sft import crossval
from tools.tiny_sft.crossval import NUM_FOLDS, folds
from tools.tiny_sft.outcomes import AnswerOutcome, PairOutcome
from tools.tiny_sft.tables import answer_table, pair_table, rules_text, share


def preference(kind: str, number: int) -> Preference:
    turn = (Message("assistant", "a"),)
    return Preference((Message("user", f"{kind} {number}"),), turn, turn, kind, f"{kind}-{number}")


def test_folds_part_the_pairs_evenly_by_kind_and_follow_the_seed() -> None:
    rows = [preference(kind, n) for kind in ("tone", "style") for n in range(26)]
    parts = folds(rows)
    assert sorted(row.id for part in parts for row in part) == sorted(row.id for row in rows)
    for part in parts:
        assert set(Counter(row.kind for row in part).values()) <= {5, 6}
    assert len(parts) == NUM_FOLDS
    assert folds(rows) == parts
    assert folds(rows, seed=1) != parts


def test_folds_measure_every_pair_and_train_on_no_kind_that_is_untaught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [preference(kind, n) for kind in ("tone", "sums") for n in range(10)]
    seen: list[str] = []

    def measure(
        config: RunConfig, train: list[Preference], new: list[Preference]
    ) -> crossval.Outcomes:
        assert {row.kind for row in train} == {"tone"}
        assert {row.id for row in train}.isdisjoint(row.id for row in new)
        seen.extend(row.id for row in new)
        return [], []

    monkeypatch.setattr(crossval, "measure", measure)
    crossval.cross_validate(RunConfig(), rows, {"sums"})
    assert sorted(seen) == sorted(row.id for row in rows)


def test_a_share_is_shown_with_its_counts_and_interval() -> None:
    assert share([True, False]) == "1/2 = 0.50 (0.09-0.91)"
    assert share([]) == "none"


def test_tables_count_what_was_put_in() -> None:
    pairs = [PairOutcome("tone", 0.5, -1.0, 4.0), PairOutcome("tone", -0.1, 2.0, 1.0)]
    assert "| tone | 1/2 = 0.50 (0.09-0.91) | +0.200 | 0.50 | 1.00 |" in pair_table(pairs)
    rude, kind = Completion("Go away.", True), Completion("You are welcome.", True)
    answers = [AnswerOutcome("tone", "Thank you.", rude, kind)]
    line = next(line for line in answer_table(answers).splitlines() if line.startswith("| tone"))
    assert [cell.split(" ")[0] for cell in line.strip("| ").split(" | ")] == [
        "tone", "0/1", "1/1", "1/1", "none"
    ]  # fmt: skip
    assert "Honesty:" in rules_text()
