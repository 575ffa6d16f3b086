"""The experiments of docs/experiments.md in small."""

from pathlib import Path

import pytest

from tools.experiments import commands, length_bias

FEW_STEPS = (*commands.EMBEDDED, "--steps", "50", "--learning-rate", "1e-3")


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(commands, "PLACE", tmp_path)


def test_split_is_the_one_training_makes() -> None:
    train, held_out = commands.split()
    assert len(train) == 210
    assert len(held_out) == 50
    assert {row["user"] for row in train}.isdisjoint(row["user"] for row in held_out)


def test_lengthening_touches_the_share_it_is_told_and_only_chosen_answers() -> None:
    rows, _ = commands.split()
    changed = length_bias.lengthen(rows, 0.2)
    longer = [a["chosen"] != b["chosen"] for a, b in zip(rows, changed, strict=True)]
    assert sum(longer) == 42
    assert [row["rejected"] for row in changed] == [row["rejected"] for row in rows]


def test_length_injected_into_chosen_answers_is_stopped_by_audit_and_seen_by_eval() -> None:
    line = dict(
        zip(length_bias.HEAD, length_bias.measure(1.0, FEW_STEPS, num_prompts=10), strict=True)
    )
    assert line["audit: length bias"] == "stop"
    assert float(line["answer, tokens"]) > float(line["reference"]) + 2
