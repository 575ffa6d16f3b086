"""audit, eval, score and compare as a person types them."""

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest

from mlx_dpo.cli import cli
from tests.cli.test_cli import exit_code
from tests.insight.conftest import policy_folder
from tests.runs.conftest import ORACLE, ROWS

__all__ = ["policy_folder"]  # a fixture, used by its name

MODEL = str(ORACLE)
TINY = str(ORACLE.parents[3] / "checkpoints" / "tiny-sft")
EMBEDDED = str(ORACLE.parents[3] / "data" / "dpo" / "preferences.json")


@pytest.fixture(autouse=True)
def files(workplace: Path) -> None:
    lengthened = [
        {**row, "user": f"{row['user']} {n}", "chosen": row["chosen"] + " And so on and on." * 3}
        for n in range(3)
        for row in ROWS
    ]
    (workplace / "long.json").write_text(json.dumps(lengthened))
    (workplace / "broken.jsonl").write_text('{"prompt": ')
    (workplace / "empty.txt").write_text("\n")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["audit", "absent.json"], 2, "absent.json: no such file"),
        (["audit", "broken.jsonl"], 3, "broken.jsonl:1"),
        (["audit", "pairs.json", "--model", "absent"], 2, "absent: no such model folder"),
        (["audit", "pairs.json", "--eval-data", "absent.json"], 2, "absent.json: no such file"),
        (["audit", "pairs.json", "--max-length", "1"], 2, "--max-length"),
        (["audit", "pairs.json", "--ches"], 2, "--ches takes --model"),
        (["data", "filter", "pairs.json", "--drop-ches", "5%", "--out", "o"], 2, "takes --model"),
        (["data", "filter", "pairs.json", "--drop-ches", "5", "--out", "o"], 2, "as 5% or 0.05"),
        (["eval", "--model", MODEL, "--data", "pairs.json"], 2, "pass --reference"),
        (["eval", "--model", "absent", "--data", "pairs.json"], 2, "no such model folder"),
        (["eval", "--model", MODEL, "--data", "absent.json"], 2, "no such file"),
        (["eval", "--model", MODEL], 2, "Missing option '--data'"),
        (["eval", "--model", MODEL, "--data", "pairs.json", "--beta", "0"], 2, "--beta"),
        (["score", "--model", MODEL], 2, "give --prompt with one --response or more, or --data"),
        (["score", "--model", MODEL, "--prompt", "x"], 2, "give --prompt with one --response"),
        (["score", "--model", MODEL, "--response", "x"], 2, "give --prompt with one --response"),
        (["score", "--model", MODEL, "--data", "pairs.json"], 2, "pass --reference"),
        (["compare", MODEL], 2, "Missing argument 'B'"),
        (["compare", MODEL, MODEL, "--prompts", "absent"], 2, "absent: not readable"),
        (["compare", MODEL, MODEL, "--prompts", "empty.txt"], 3, "empty.txt: no prompts in it"),
        (["compare", MODEL, "absent"], 2, "absent: no such model folder"),
        (["compare", "x", "y", "--blind"], 2, "stdin is not a terminal"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(
    args: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*args) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_options_are_called_as_everywhere() -> None:
    names = {
        command: {n for p in cli.commands[command].params if p.expose_value for n in p.opts}
        for command in ("audit", "eval", "score", "compare")
    }
    assert names == {
        "audit": {
            *("data", "--model", "--eval-data", "--max-length", "--drop-bad", "--strict"),
            *("--ches", "--json"),
        },
        "eval": {
            *("--drop-bad", "--adapter"),
            *("--model", "--reference", "--data", "--all-pairs", "--beta", "--max-length"),
            *("--num-prompts", "--max-tokens", "--seed", "--json"),
        },
        "score": {
            *("--model", "--reference", "--prompt", "--response", "--data", "--per-token"),
            *("--beta", "--max-length", "--drop-bad", "--adapter", "--json"),
        },
        "compare": {
            *("a", "b", "--prompts", "--max-tokens", "--temperature", "--seed", "--blind"),
            *("--json", "--adapter"),
        },
    }


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "bad.json", "--model", MODEL],
        ["eval", "--model", MODEL, "--reference", MODEL, "--data", "bad.json", "--num-prompts=0"],
        ["score", "--model", MODEL, "--reference", MODEL, "--data", "bad.json"],
    ],
    ids=["audit", "eval", "score"],
)
def test_a_file_that_training_accepts_with_drop_bad_is_accepted_with_it(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [{"user": "And then?"}, {**ROWS[0], "user": "It says <|end|>."}]
    Path("bad.json").write_text(json.dumps([*ROWS, *bad]))
    assert exit_code(*command) == 3
    assert "bad.json:1:" in capsys.readouterr().err
    assert exit_code(*command, "--drop-bad") == 0
    assert "left out: bad.json: 2 x missing-key (row" in capsys.readouterr().err


NO_KEY = {"user": "And then?"}
NO_USER = {"prompt": [{"role": "system", "content": "x"}], "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("command", "row", "message"),
    [
        (["audit", "bad.json"], NO_KEY, "bad.json: no pair is left (2 missing-key, such as bad"),
        (["audit", "bad.json", "--model", MODEL], NO_KEY, "bad.json: no pair is left (2 missing"),
        (["audit", "pairs.json", "--eval-data", "bad.json"], NO_KEY, "bad.json: no pair is left"),
        (
            ["audit", "bad.json", "--model", TINY],
            NO_USER,
            "bad.json: no pair is left to look at (2 template, such as the chat template refuses",
        ),
        (
            ["score", "--model", MODEL, "--reference", MODEL, "--data", "bad.json"],
            {**ROWS[0], "user": "It says <|end|>."},
            "bad.json: no pair is left to score (2 special-token)",
        ),
    ],
)
def test_a_file_of_which_no_pair_is_left_is_one_line_with_the_reason(
    command: list[str], row: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row] if row is NO_KEY else [row, {**row, "chosen": "c"}]
    Path("bad.json").write_text(json.dumps(rows))
    assert exit_code(*command, "--drop-bad") == 3
    assert f"mlx_dpo: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["eval", "score"])
def test_a_pair_that_holds_a_special_token_is_refused_as_in_training(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.json").write_text(json.dumps([*ROWS, {**ROWS[0], "user": "It says <|end|>."}]))
    args = [command, "--model", MODEL, "--reference", MODEL, "--data", "bad.json"]
    assert exit_code(*args) == 3
    shown = capsys.readouterr().err
    assert "pair 15: '<|end|>' is a token of this model" in shown
    assert "--drop-bad leaves the pair out" in shown


def test_a_row_is_previewed_whatever_the_others_hold(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.json").write_text(json.dumps([{"user": "And then?"}, ROWS[0]]))
    preview = ["data", "preview", "bad.json", "--model", MODEL]
    assert exit_code(*preview, "--row", "2") == 0
    assert "bad.json row 2, kind" in capsys.readouterr().out
    assert exit_code(*preview, "--row", "1") == 3
    assert "bad.json:1:2: missing-key: key 'chosen' is missing" in capsys.readouterr().err


def audited(*args: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert exit_code("audit", *args, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    return {check["name"]: check for check in record["checks"]}


def test_the_audit_passes_the_embedded_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("audit", EMBEDDED, "--strict") == 0
    shown = capsys.readouterr().out
    assert "260 pairs, 10 kinds; lengths in words (tokens with --model)" in shown
    assert "stop" not in shown
    assert '"the longer one wins" is right in 0.49 (0.43-0.55)' in shown


def test_the_audit_stops_pairs_lengthened_on_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("audit", "long.json") == 0
    shown = capsys.readouterr().out
    assert "length bias: rows to look at\n  row " in shown
    assert "stop: fix length bias" in shown
    assert exit_code("audit", "long.json", "--strict") == 3
    assert "long.json: --strict: stop at length bias" in capsys.readouterr().err
    checks = audited("long.json", "--model", MODEL, capsys=capsys)
    assert checks["length bias"]["verdict"] == "stop"
    assert checks["length bias"]["figures"]["unit"] == "tokens"
    assert checks["truncation"]["verdict"] == "ok"


def test_the_audit_reads_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in ORACLE.iterdir():
        content = b"not weights" if file.suffix == ".safetensors" else file.read_bytes()
        (folder / file.name).write_bytes(content)
    checks = audited("pairs.json", "--model", str(folder), "--max-length", "16", capsys=capsys)
    assert checks["truncation"]["verdict"] == "stop"


def test_text_of_a_file_cannot_take_over_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "kind": "\x1b[31m", "user": f"\u202e[/x] {row['user']}"} for row in ROWS * 3]
    Path("odd.json").write_text(json.dumps(rows))
    exit_code("audit", "odd.json")
    assert "\x1b" not in capsys.readouterr().out


def test_eval_shows_both_accuracies_before_and_after(
    policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["eval", "--model", str(policy_folder), "--data", "pairs.json", "--max-tokens", "4"]
    assert exit_code(*args, "--num-prompts", "2") == 0
    shown = capsys.readouterr().out
    assert f"reference  {MODEL}" in shown
    assert "4 pairs, those its run held out (--all-pairs takes all)" in shown
    assert "settings   beta 0.3, max-length 96" in shown
    for part in ("reward acc", "log-prob acc", "length-matched", "ECE", "KL(policy || reference)"):
        assert part in shown
    assert exit_code(*args, "--num-prompts", "0", "--all-pairs") == 0
    shown = capsys.readouterr().out
    assert "14 pairs, all pairs of the file, those it was trained on among them" in shown
    assert "not measured (--num-prompts 0)" in shown
    assert re.search(r"\nlength-controlled +\d+  0\.\d\d \(0\.\d\d-[01]\.\d\d\)\n", shown)
    assert re.search(r"chosen answer less likely .*: \d+ of 14 pairs; mean change ", shown)
    assert re.search(r"\n  id \d+: chosen -\d+\.\d\d, rejected .\d+\.\d\d nats: Tell me ", shown)
    assert "\n    lost most at '" in shown


def test_eval_for_machines_is_one_object(
    policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--reference", MODEL, "--data", "pairs.json", "--num-prompts", "1", "--max-tokens", "4"]
    assert exit_code("eval", "--model", str(policy_folder), *args, "--beta", "0.5", "--json") == 0
    shown = capsys.readouterr()
    record = json.loads(shown.out)
    assert record["beta"] == 0.5
    assert record["groups"][0]["num_pairs"] == 4
    assert record["drift"]["num_prompts"] == 1
    assert sum(b["num_pairs"] for b in record["calibration"]["bins"]) == 4
    found = record["displacement"]
    assert (found["num_pairs"], found["num_fallen"]) == (4, len(found["fallen"]))
    changes = [pair["chosen"] for pair in found["fallen"]]
    assert changes == sorted(changes)
    assert found["fallen"][0]["place"]["lost"]["token"]
    longer, _, shorter = (group["num_pairs"] for group in record["lengths"])
    assert (record["length_controlled"] is None) == (not (longer and shorter))
    assert shown.err == ""


def test_eval_warns_of_a_reference_the_policy_does_not_come_from(
    policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--data", "pairs.json", "--num-prompts", "0", "--reference", str(policy_folder)]
    assert exit_code("eval", "--model", str(policy_folder), *args) == 0
    shown = capsys.readouterr()
    assert "is not the model" in shown.err
    assert "loss       0.6931 (untrained: log 2 = 0.6931)" in shown.out


def test_score_writes_a_line_an_answer_whose_tokens_sum_to_it(
    policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["score", "--model", str(policy_folder), "--prompt", "Hello"]
    args += ["--response", "A good day.", "--response", "No."]
    assert exit_code(*args, "--per-token") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["response"] for line in lines] == ["A good day.", "No."]
    for line in lines:
        assert sum(t["reward"] for t in line["tokens"]) == pytest.approx(line["reward"], abs=1e-6)
        assert line["tokens"][-1]["token"] == "<|end|>"
        assert line["reward"] != 0
    assert exit_code(*args) == 0
    assert "tokens" not in json.loads(capsys.readouterr().out.splitlines()[0])


def test_score_of_a_file_is_a_line_a_pair_and_says_what_was_trained_on(
    policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["score", "--model", str(policy_folder), "--data", "pairs.json"]
    assert exit_code(*args) == 0
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [line["trained_on"] for line in lines] == [True] * 10 + [False] * 4
    for line in lines:
        gap = line["chosen"]["reward"] - line["rejected"]["reward"]
        assert line["margin"] == pytest.approx(gap)
    assert "all pairs: 14 at beta 0.3; reward accuracy" in shown.err
    assert "held out of its run: 4 at beta 0.3; reward accuracy" in shown.err
    assert exit_code(*args, "--per-token") == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for one, other in zip(lines, again, strict=True):
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-3)
        assert len(other["chosen"]["tokens"]) == other["chosen"]["num_tokens"]


def test_compare_shows_both_answers_and_how_they_are(
    policy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.txt").write_text("First?\nSecond \x1b[31m?\n")
    args = ["compare", MODEL, str(policy_folder), "--prompts", "mine.txt", "--max-tokens", "6"]
    assert exit_code(*args) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert shown.startswith(f"A  {MODEL}\nB  {policy_folder}\n\nFirst?\n  greedy  A:")
    assert "The greedy answers are the same in" in shown
    assert exit_code(*args, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompts"][0]["question"]["prompt"] == "First?"
    assert record["habits"][0]["a"]["num_answers"] == 4


def test_a_blind_judgement_is_asked_for_with_keys_and_counted(
    policy_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.txt").write_text("".join(f"Question {n}?\n" for n in range(4)))
    keys = iter(["x", "\x1b[1;5A", "1t", "s"])  # unknown keys are no answers; one is typed ahead
    asked: list[str] = []

    def press(echo: bool = False) -> str:
        asked.append("key")
        try:
            return next(keys)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "getchar", press)
    args = ["compare", MODEL, str(policy_folder), "--prompts", "mine.txt", "--max-tokens", "6"]
    assert exit_code(*args, "--blind") == 0
    shown = capsys.readouterr()
    assert "better: 1 or 2, t for a tie, s to skip, q to stop" in shown.err
    assert MODEL not in shown.err
    assert len(asked) == 5
    assert "ties 1; skipped 1, same answer 0" in shown.out
    assert "of 2 judged, a tie being half a win" in shown.out


def test_the_pairs_that_audit_calls_most_alike_are_those_that_filter_leaves_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code("audit", "pairs.json", "--model", MODEL, "--ches", "--json") == 0
    ches: dict[str, float] = json.loads(capsys.readouterr().out)["ches"]
    assert len(ches) == len(ROWS)
    assert exit_code("audit", "pairs.json", "--model", MODEL, "--ches") == 0
    shown = capsys.readouterr().out
    worst = max(ches, key=ches.__getitem__)
    assert f"\n  id {worst}: CHES {ches[worst]:.3g}: " in shown
    words = ["data", "filter", "pairs.json", "--drop-ches", "25%", "--model", MODEL]
    assert exit_code(*words, "--out", "clear.jsonl") == 0
    dropped = round(len(ROWS) / 4)
    assert f"{dropped} dropped ({dropped} ches)" in capsys.readouterr().out
    kept = {json.loads(line)["id"] for line in Path("clear.jsonl").read_text().splitlines()}
    assert ches.keys() - kept == set(sorted(ches, key=ches.__getitem__)[-dropped:])
