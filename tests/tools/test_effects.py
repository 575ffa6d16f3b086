"""The study of docs/effects.md in small: intervals, sets, resumable cells, tables and pictures."""

import json
import math
import sys
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

import numpy as np
import pytest

from mlx_dpo.insight.charts import standalone
from mlx_dpo.insight.ches import ches_scores
from tools.experiments import commands
from tools.experiments.effects import (
    cells,
    intervals,
    judged,
    pictures,
    sets,
    single_tokens,
    study,
    tuning,
)

pytestmark = pytest.mark.pages

PAIRS = json.loads(commands.PAIRS.read_text())
MODEL = commands.MODEL


def test_spearman_takes_ties_and_is_blind_to_any_rising_scale() -> None:
    x = np.array([3.0, 1.0, 2.0, 2.0])
    assert intervals.ranks(x) == pytest.approx([4, 1, 2.5, 2.5])
    assert intervals.spearman(x, np.exp(x)) == pytest.approx(1)
    assert intervals.spearman(x, -x) == pytest.approx(-1)
    assert intervals.spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == (
        pytest.approx(0.8)
    )


def test_a_correlation_that_is_all_by_a_third_quantity_vanishes_where_that_is_held_fixed() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=4000)
    x, y = z + rng.normal(size=4000), z + rng.normal(size=4000)
    assert intervals.spearman(x, y) > 0.4
    assert abs(intervals.partial_spearman(x, y, z)) < 0.05


def test_a_bootstrap_draws_whole_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "DRAWS", 400)
    values = np.repeat([0.0, 1.0] * 8, 10)
    alone, together = (
        intervals.bootstrap(lambda rows, _: float(values[rows].mean()), groups)
        for groups in (range(160), np.repeat(range(16), 10).tolist())
    )
    assert 0.4 < alone[0] < 0.5 < alone[1] < 0.6
    assert together[0] < 0.35  # ten copies of an answer are one answer
    assert together[1] > 0.65


def test_a_finished_cell_is_not_measured_again_and_other_settings_are_refused(
    tmp_path: Path,
) -> None:
    def stopped() -> NoReturn:
        raise KeyboardInterrupt

    folder = tmp_path / "a" / "b"
    with pytest.raises(KeyboardInterrupt):
        cells.cell(folder, {"rate": 1}, stopped)
    assert cells.results(tmp_path) == {}
    first = cells.cell(folder, {"rate": 1}, lambda: {"loss": 0.5})
    assert cells.cell(folder, {"rate": 1}, stopped) == first
    assert cells.results(tmp_path) == {"a/b": first}
    with pytest.raises(SystemExit, match="another rate"):
        cells.cell(folder, {"rate": 2}, stopped)


def test_both_scores_of_one_forward_are_those_of_the_audit() -> None:
    model = tuning.open_model(MODEL)
    (pool, _) = sets.embedded(model.chat)
    examples = pool.held.examples[:5]
    found = tuning.both_ches(model, examples)
    for row, by_length in enumerate((False, True)):
        expected = ches_scores(model.net, examples, max_length=128, pad_id=0, by_length=by_length)
        assert found[row] == pytest.approx(expected, rel=1e-3)


def verdict(row: dict[str, Any], number: int, verdicts: tuple[int, int, int]) -> dict[str, Any]:
    return {
        "idx": number,
        "instruction": row["user"],
        "input": "",
        "response1": row["chosen"],
        "response2": row["rejected"],
        **{f"annotator{n}": verdict for n, verdict in enumerate(verdicts, 1)},
    }


def test_of_pandalm_the_pairs_are_read_on_which_all_annotators_agree(tmp_path: Path) -> None:
    file = tmp_path / "pandalm.json"
    verdicts = [(1, 1, 1), (2, 2, 2), (1, 1, 2), (0, 0, 0)]
    file.write_text(json.dumps([verdict(PAIRS[0], n, v) for n, v in enumerate(verdicts)]))
    first, second = sets.pandalm(file)
    assert first.chosen[0].content == second.rejected[0].content == PAIRS[0]["chosen"]


def test_pairs_are_divided_by_prompt() -> None:
    chat = tuning.open_chat(MODEL)
    rows = [sets._pair(row["user"], ("a b", row[side]), 2, "", n)
            for n, row in enumerate(PAIRS[:12]) for side in ("chosen", "rejected")]  # fmt: skip
    pool = sets.pool("x", rows, chat, most_tokens=99, num_train=10, num_held=5)
    assert (len(pool.train.examples), len(pool.held.examples)) == (10, 5)
    assert not set(pool.train.prompts) & set(pool.held.prompts)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Sets of our own pairs in the form of the public ones, and the words that name them."""
    pandalm = [verdict(row, n, (1, 1, 1)) for n, row in enumerate(PAIRS[::12])]
    llmbar = [
        {"input": row["user"], "output_1": row["rejected"], "output_2": row["chosen"], "label": 2}
        for row in PAIRS[1::40]
    ]
    statements = [
        {"question": f"Is it {word}?", "answer_matching_behavior": answer}
        for word in "abcdefgh"
        for answer in (" Yes", " No")
    ]
    (tmp_path / "pandalm.json").write_text(json.dumps(pandalm))
    (tmp_path / "natural.json").write_text(json.dumps(llmbar))
    (tmp_path / "statements.jsonl").write_text("\n".join(map(json.dumps, statements)))
    return [
        *("study", "--model", MODEL, "--out", str(tmp_path / "out")),
        *("--pandalm", str(tmp_path / "pandalm.json"), "--pairs", "9", "--held-out", "8"),
        *("--llmbar", str(tmp_path / "natural.json")),
        *("--statements", str(tmp_path / "statements.jsonl")),
    ]


def test_a_study_in_small_measures_once_and_prints_and_draws_what_it_measured(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module, name, value in (
        (study, "SEEDS", (0,)),
        (study, "FACTORS", (1.0, 3.0)),
        (study, "EMBEDDED_EPOCHS", 1),
        (study, "DRIFT_PROMPTS", 2),
        (study, "DRIFT_TOKENS", 3),
        (intervals, "DRAWS", 30),
        (single_tokens, "PAIRS", (("No", "Yes"), ("Yes", "No"))),
        (single_tokens, "NUM_PROMPTS", 2),
        (single_tokens, "STEPS", 2),
    ):
        monkeypatch.setattr(module, name, value)
    (pool, _) = sets.embedded(tuning.open_chat(MODEL))
    few = sets.Pool("few", sets.some(pool.train, range(8)), sets.some(pool.held, range(8)))
    monkeypatch.setattr(sets, "embedded", lambda chat: [few])
    monkeypatch.setattr(sys, "argv", files)
    study.main()
    first = capsys.readouterr().out
    for heading in ("Accuracy", "Length", "CHES", "A model a tercile", "Rates", "One token"):
        assert f"\n{heading}\n" in f"\n{first}"
    assert "| pandalm | LLMBar, natural | 7 |" in first
    monkeypatch.setattr(study, "tuned", None)  # whatever trains would fail
    monkeypatch.setattr(single_tokens, "_taught", None)
    study.main()
    assert capsys.readouterr().out == first

    done = judged.Finished(cells.results(tmp_path / "out"))
    first_word, second_word = (done.cells[f"tokens/{name}"] for name in ("no-yes", "yes-no"))
    for one, other in zip(first_word["rows"], second_word["rows"], strict=True):
        assert one["before"] == other["before"]  # each starts from the same model
        assert one["track"] != other["track"]
    drawn = dict(pictures.pictures(done))
    assert list(drawn) == ["margin", "logprobs", "ches", "length", "rates", "drift"]
    for drawings in drawn.values():
        ElementTree.fromstring(standalone(*drawings))


def test_before_training_nothing_is_right_by_reward_and_the_loss_is_log_2() -> None:
    logprobs = np.array([[-3.0, -9.0], [-5.0, -4.0]])
    same = judged.Judged(
        logprobs, logprobs[None], np.array([[10.0, 5.0], [10.0, 9.0]]), [0, 1], ["", ""]
    )
    assert same.losses == pytest.approx(math.log(2))
    assert same.rights["reward"].tolist() == [[0, 0]]
    assert same.rights["log-prob before"].tolist() == [[1, 0]]
    assert {name: rows.tolist() for name, rows in same.length_groups().items()} == {
        judged.LONGER: [],
        judged.MATCHED: [0],
        judged.SHORTER: [1],
    }
