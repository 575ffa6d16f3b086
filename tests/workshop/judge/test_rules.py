"""Rules as judges, and the command with one."""

import json
from pathlib import Path

import pytest

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.records import Message
from mlx_dpo.workshop.judge.judges import rule_judge
from mlx_dpo.workshop.judge.verdicts import JudgeQuestion, Verdict
from tests.cli.test_cli import exit_code


def ask(rule: str, a: str, b: str, prompt: str = "What is 2 plus 2?") -> str:
    question = JudgeQuestion((Message("user", prompt),), a, b, "")
    verdict = rule_judge(rule).verdict(question)
    # A rule has no favourite place, whatever it is.
    assert rule_judge(rule).verdict(question.swapped).swapped is verdict
    return verdict.value


@pytest.mark.parametrize(
    ("rule", "a", "b", "verdict"),
    [
        ("rule:shorter", "Yes.", "Certainly.", "A"),
        ("rule:shorter", "Yes.   \n\n\n", "Sure.", "A"),
        ("rule:shorter", "Yes.", "Nah.", "tie"),
        ("rule:longer", "Yes.", "Certainly.", "B"),
        ("rule:regex:^- ", "- milk", "milk", "A"),
        ("rule:regex:(?i)please|thank", "Go.", "Thank you.", "B"),
        ("rule:regex:x", "a", "b", "tie"),
        ("rule:regex:a:b", "a:b", "a", "A"),
    ],
)
def test_a_rule_decides(rule: str, a: str, b: str, verdict: str) -> None:
    assert ask(rule, a, b) == verdict


def test_the_exact_answer_is_looked_up_by_prompt(tmp_path: Path) -> None:
    file = tmp_path / "right.jsonl"
    file.write_text('{"prompt": "What is 2 plus 2?", "answer": "4"}\n')
    rule = f"rule:exact:{file}"
    assert ask(rule, "5", " 4\n") == "B"
    assert ask(rule, "4", "4 ") == "tie"
    assert ask(rule, "4", "5", prompt="Something else?") == Verdict.ABSTAIN.value


@pytest.mark.parametrize(
    "name",
    [
        *("rule:best", "rule:", "rule:exact:no-file"),
        *("rule:regex:", "rule:regex:(", "rule:regex:a{99999999999}"),
    ],
)
def test_a_rule_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        rule_judge(name)


def test_a_file_of_right_answers_must_be_one(tmp_path: Path) -> None:
    file = tmp_path / "right.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"right\.jsonl:2: 'answer' must be text"):
        rule_judge(f"rule:exact:{file}")


def test_the_command_writes_what_the_reader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": "a", "prompt": "Hi", "answers": ["Hello there.", "Hello."], "kind": "style"},
        {"id": "b", "prompt": "Ho", "answers": ["one", "two"]},
        {"id": "c", "prompt": "Hu", "answers": ["same", "same"]},
    ]
    Path("candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["data", "judge", "candidates.jsonl", "--judge", "rule:shorter"]
    assert exit_code(*command) == 0
    shown = capsys.readouterr().out
    assert "1 kept, 0 flipped with the order, 1 tied, 0 abstained, 0 failed" in shown
    assert "3 prompts, 1 of them without two different answers" in shown
    (pair,) = read_preferences("preferences.jsonl")
    assert (pair.id, pair.kind, pair.chosen[0].content) == ("a", "style", "Hello.")
    assert exit_code(*command) == 2
    assert "preferences.jsonl: already exists" in capsys.readouterr().err
    assert exit_code(*command, "--overwrite") == 0


def test_no_file_is_replaced_where_no_pair_has_a_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"id": "a", "prompt": "Ho", "answers": ["one", "two"]}
    Path("candidates.jsonl").write_text(json.dumps(row) + "\n")
    Path("pairs.jsonl").write_text("earlier")
    command = ["data", "judge", "candidates.jsonl", "--judge", "rule:shorter", "--overwrite"]
    assert exit_code(*command, "--out", "pairs.jsonl") == 3
    assert "pairs.jsonl: left as it was: no pair has a winner" in capsys.readouterr().err
    assert Path("pairs.jsonl").read_text() == "earlier"
    assert exit_code(*command, "--out", "candidates.jsonl") == 2
    assert "holds the candidates" in capsys.readouterr().err
    pair = {"prompt": "Ho", "chosen": "one", "rejected": "two"}
    Path("candidates.jsonl").write_text(json.dumps(pair) + "\n")
    assert exit_code(*command) == 3
    assert "candidates.jsonl: all rows are finished pairs" in capsys.readouterr().err
