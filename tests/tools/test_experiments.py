"""The experiments of docs/experiments.md in small."""

import json
import math
import sys
from itertools import combinations
from pathlib import Path

import pytest

from mlx_dpo.models.parameters import fingerprint
from tests.cli.conftest import run
from tools.experiments import commands, length_bias, malformed_row, ranking, reference_drift
from tools.experiments.by_hand import new_run

pytestmark = pytest.mark.pages

FEW_STEPS = (*commands.EMBEDDED, "--steps", "30", "--learning-rate", "1e-3")


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(commands, "PLACE", tmp_path)


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands run here: a process for each would first import everything again."""

    def command(*words: str | Path | float) -> str:
        code, shown, _ = run(capsys, *map(str, words))
        assert code == 0
        return shown

    monkeypatch.setattr(commands, "command", command)


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


@pytest.mark.usefixtures("_in_process")
def test_length_injected_into_chosen_answers_is_stopped_by_audit_and_seen_by_eval() -> None:
    line = dict(
        zip(length_bias.HEAD, length_bias.measure(1.0, FEW_STEPS, num_prompts=5), strict=True)
    )
    assert line["audit: length bias"] == "stop"
    assert float(line["answer, tokens"]) > float(line["reference"]) + 2


@pytest.mark.usefixtures("_in_process")
def test_a_run_by_hand_without_a_mistake_is_the_run_that_train_makes() -> None:
    model = commands.train("right", commands.EMBEDDED, "--steps", "3")
    metrics = (model.parent / "run/metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, metrics) if "loss" in row]
    shown: list[float] = []
    new_run(steps=3).trainer().train(after_step=lambda step, m: shown.append(m["loss"]))
    assert shown == pytest.approx(losses, abs=1e-5)


def test_a_run_in_small_keeps_every_fourth_pair_and_the_same_ones_out() -> None:
    rows, unseen = commands.split()
    run = new_run(steps=1, every=4)
    assert run.pairs[:2] == run.encode([rows[0], rows[4]])
    assert len(run.pairs) == len(rows[::4])
    assert run.held_out == run.encode(unseen)


def test_margins_are_zero_until_the_policy_trains() -> None:
    run = new_run(steps=1, every=4, warmup_steps=0)
    pairs = run.held_out[:17]  # more than one batch
    assert run.margins(pairs) == pytest.approx([0.0] * 17, abs=1e-4)
    (metrics,) = run.train()
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert any(abs(margin) > 1e-3 for margin in run.margins(pairs))


def test_a_command_is_shown_where_a_notebook_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.command("--version")
    assert capsys.readouterr().err == "$ mlx_dpo --version\n"
    monkeypatch.setattr(commands, "SHOWN_ON", sys.stdout)
    commands.command("--version")
    assert capsys.readouterr() == ("$ mlx_dpo --version\n", "")


def test_a_reference_that_trains_along_shows_log_2_for_ever_while_the_policy_moves() -> None:
    run = new_run(steps=3)
    start = fingerprint(run.policy)
    shown = reference_drift.train(run, frozen=False)
    assert [metrics["loss"] for metrics in shown] == pytest.approx([math.log(2)] * 3, abs=1e-6)
    assert fingerprint(run.policy) != start
    assert fingerprint(run.sft) == start


def test_graded_answers_make_six_pairs_a_prompt_each_with_the_better_answer_chosen() -> None:
    _, rows = commands.split()
    ladders = ranking.graded(rows[:10])
    pairs = ranking.as_pairs(rows[:10], ladders)
    assert 6 * 10 - len(pairs) <= 3  # an answer of one word can't be shuffled
    place = {(row["user"], text): n for row, own in zip(rows, ladders, strict=False)
             for n, text in enumerate(own)}  # fmt: skip
    for pair in pairs:
        assert place[pair["prompt"], pair["chosen"]] > place[pair["prompt"], pair["rejected"]]


@pytest.mark.parametrize(("order", "tau"), [("abcd", 1.0), ("dcba", -1.0), ("bacd", 2 / 3)])
def test_kendalls_tau_counts_pairs_out_of_order(order: str, tau: float) -> None:
    in_order = [order.index(a) < order.index(b) for a, b in combinations("abcd", 2)]
    assert ranking.kendall_tau(in_order) == pytest.approx(tau)


def test_one_row_or_every_fourth_is_broken_and_the_command_names_the_row(tmp_path: Path) -> None:
    rows, _ = commands.split()
    markers = malformed_row.BROKEN["role markers"]
    one = malformed_row.broken(rows, markers, None)
    assert [a is not b for a, b in zip(rows, one, strict=True)].index(True) == malformed_row.FIRST
    many = malformed_row.broken(rows, markers, 4)
    assert sum(a is not b for a, b in zip(rows, many, strict=True)) == 52
    with pytest.raises(commands.Refused, match=r"bad\.jsonl:4:\d+: special-token.*exit code 3"):
        commands.train("bad", FEW_STEPS, "--data", commands.write("bad.jsonl", one))
