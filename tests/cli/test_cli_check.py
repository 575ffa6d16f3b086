"""`mlx_dpo data check`: what a person sees of a file, and that the sum is right."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.cli import main
from mlx_dpo.errors import DataError
from mlx_dpo.preferences.context import BEYOND_TEXT, HISTORIES, SYSTEMS
from mlx_dpo.preferences.reader import read_pair, read_preferences
from tests.runs.conftest import ORACLE

PAIR = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "No."}

BAD = [
    '{"user": "Hi", "chosen": 7, "rejected": "no"}',
    '{"user": "Hi", "chosen": "a <|end|>", "rejected": "no"}',
    '{"user": "Hi", "chosen": "same", "rejected": "same"}',
    '{"user": "Ho", "chosen": "a", "rejected": "b"}',
    '{"user": "Ho", "chosen": "b", "rejected": "a"}',
    "no JSON",
]


@pytest.fixture(autouse=True)
def files(workplace: Path) -> None:
    (workplace / "bad.jsonl").write_text("\n".join(BAD))


def check(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["data", "check", *args])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_good_file_is_all_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("pairs.json", "--model", str(ORACLE)) == 0
    shown, told = capsys.readouterr()
    account, lengths = shown.splitlines()
    assert account == "14 rows read = 14 kept + 0 dropped"
    assert lengths.startswith("length bias: ok: ")
    assert not told


def test_each_problem_has_its_place_code_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("bad.jsonl") == 3
    shown = capsys.readouterr()
    assert "error: bad.jsonl:1:16: wrong-type: 'chosen' must be text" in shown.out
    assert "error: bad.jsonl:5:16: contradiction: row 4 prefers the other way" in shown.out
    assert "left out: bad.jsonl:3:34: equal: chosen equals rejected" in shown.out
    assert "6 rows read = 1 kept + 5 dropped (1 bad-json, 1 wrong-type, 2 contra" in shown.out
    assert "pass --model" in shown.out
    assert shown.err == (
        "mlx_dpo: bad.jsonl: 3 errors; train refuses the file: correct it, or leave such rows out: "
        "--drop-bad\n"
    )


def test_with_a_model_its_special_tokens_and_lengths_are_checked_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert check("bad.jsonl", "--model", str(ORACLE)) == 3
    shown = capsys.readouterr().out
    assert "bad.jsonl:2:29: special-token: '<|end|>' is a token of this model" in shown
    assert "6 rows read = 0 kept + 6 dropped" in shown
    assert check("pairs.json", "--model", str(ORACLE), "--max-length", "40") == 0
    shown = capsys.readouterr().out
    assert "x response-cut (rows " in shown
    assert shown.count("an answer's end is cut off: ") == 1


def test_a_code_with_many_rows_is_short_and_all_are_in_the_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("many.jsonl").write_text("\n".join(["{}"] * 30))
    assert check("many.jsonl", "--log", "log.jsonl") == 3
    shown = capsys.readouterr().out
    assert shown.count("error: many.jsonl:") == 3
    assert "error: 87 more missing-key (rows " in shown
    assert "All are in log.jsonl." in shown
    lines = [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]
    assert len(lines) == 90
    assert lines[0] == {
        **{"file": "many.jsonl", "line": 1, "column": 1, "row": 1, "code": "missing-key"},
        **{"reason": "key 'chosen' is missing", "hint": "found []", "level": "error"},
    }


def test_machines_read_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("bad.jsonl", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["read"] == found["kept"] + sum(found["dropped"].values()) == 6
    assert found["problems"] == {"wrong-type": 1, "equal": 1, "contradiction": 1, "bad-json": 1}
    assert found["errors"] == 3
    assert found["first"][0]["code"] == "wrong-type"


def test_candidates_are_named_as_such_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Question {i}", "answers": ["a", "b"]} for i in range(24)]
    Path("candidates.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert check("candidates.jsonl") == 3
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert "holds candidates" in shown.err
    assert "mlx_dpo data label candidates.jsonl" in shown.err
    assert "drop-bad" not in shown.err


@pytest.mark.parametrize("options", [[], ["--log", "log.jsonl"]])
def test_an_error_of_the_system_is_not_one_of_the_log(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")  # no process left

    monkeypatch.setattr("mlx_dpo.preferences.encoding.ingest", fail)
    assert check("bad.jsonl", *options) == 1
    assert "mlx_dpo: BlockingIOError: [Errno" in capsys.readouterr().err
    assert check("bad.jsonl", "--log", "absent/log.jsonl") == 7
    assert "absent/log.jsonl: not written: No such file" in capsys.readouterr().err


def test_the_log_never_replaces_the_file_itself(capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("bad.jsonl").read_bytes()
    assert check("bad.jsonl", "--log", "./bad.jsonl") == 2
    assert Path("bad.jsonl").read_bytes() == before
    assert "is the file to check" in capsys.readouterr().err


@pytest.mark.parametrize("column", [*SYSTEMS, *HISTORIES])
@pytest.mark.parametrize("number", [1, 40])
def test_a_column_that_belongs_to_the_prompt_is_no_key_that_is_passed_over(
    column: str, number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [PAIR | {"prompt": f"Colour {i}?"} for i in range(number)]
    rows[-1][column] = [["Red?", "No."]]  # type: ignore[assignment]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(str(file)) == 3
    out, err = capsys.readouterr()
    assert f"{column!r} belongs to the prompt" in out or f"with a column {column!r}" in err
    assert "mlx_dpo data import" in out + err


def test_each_key_that_nobody_reads_is_named_of_rows_and_of_messages(tmp_path: Path) -> None:
    keys = ["score", "status", "source"]
    names = ["name", "weight", "thinking", "reasoning_content"]
    turn = {"role": "assistant", "content": "Blue.", **dict.fromkeys(names, "x")}
    row = PAIR | dict.fromkeys(keys, "x") | {"chosen": [turn]}
    file, log = tmp_path / "pairs.jsonl", tmp_path / "log.jsonl"
    file.write_text(
        json.dumps(row) + "\n" + json.dumps(PAIR | dict.fromkeys(map(str, range(25)), "y"))
    )
    assert check(str(file), "--log", str(log)) == 0
    reasons = [json.loads(line)["reason"] for line in log.read_text().splitlines()]
    for name in (*keys, *names, *map(str, range(20))):
        assert sum(reason.startswith(f"{name!r} ") for reason in reasons) >= 1, name
    assert "5 more keys of the row are not used, '20' first" in reasons


TURNS = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "It is"}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *(
            ({name: ["a.png"]}, f"has {name!r}, which a pair has no place for")
            for name in BEYOND_TEXT
        ),
        (
            {"prompt": [{"role": "user", "content": "Sky?", "images": ["a.png"]}]},
            "'prompt' holds a message that has 'images'",
        ),
        ({"prompt": TURNS}, "the prompt ends with the assistant's turn, and 'chosen' begins a"),
        (
            {
                name: [*TURNS, {"role": "assistant", "content": name}]
                for name in ("chosen", "rejected")
            },
            "the prompt ends with the assistant's turn",
        ),
    ],
)
def test_a_row_whose_answers_need_more_than_its_prompt_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], reason: str
) -> None:
    file = tmp_path / "pairs.jsonl"
    row = PAIR | changes
    if "rejected" in changes:
        del row["prompt"]
    file.write_text("".join(json.dumps(each) + "\n" for each in (PAIR, row)))
    assert check(str(file)) == 0
    shown = capsys.readouterr().out
    assert f"unsupported: {reason}" in shown
    assert "unknown-key" not in shown
    assert "2 rows read = 1 kept + 1 dropped (1 unsupported)" in shown
    with pytest.raises(SystemExit):
        main(["data", "import", str(file), "--out", str(tmp_path / "out.jsonl")])
    assert f"unsupported: {reason}" in "".join(capsys.readouterr())
    assert len(read_preferences(file)) == 1
    with pytest.raises(DataError, match="unsupported"):
        read_pair(file, 2)
    nothing = dict.fromkeys(changes, "[]") | PAIR
    file.write_text(json.dumps(nothing) + "\n")
    assert check(str(file)) == 0
    assert "1 kept" in capsys.readouterr().out
