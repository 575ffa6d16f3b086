"""`mlx_dpo doctor`: the table, the block to paste, JSON and exit codes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_dpo.insight.doctor.bench import FAIL, LOOK, OK, Bench, Outcome, random_llama
from mlx_dpo.insight.doctor.examination import CHECKS
from tests.cli.conftest import run


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    specimen = replace(random_llama(kv_heads=1, layers=1, vocabulary=64), about="very small")
    monkeypatch.setattr(
        "mlx_dpo.insight.doctor.examination.standard_specimens", lambda: ([specimen], [])
    )


def give(monkeypatch: pytest.MonkeyPatch, verdict: str) -> None:
    """Replace the checks of models by one."""

    def check(bench: Bench) -> Outcome:
        return Outcome(verdict, "17 of 20", "It means this.", {"number": 17})

    monkeypatch.setattr("mlx_dpo.insight.doctor.examination.CHECKS", {"only": check})


def test_every_check_has_a_line_a_meaning_and_its_place_in_the_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "doctor")
    assert code == 0
    report, block, _ = out.split("-" * 40 + "\n")
    for name in ("device", "memory", "system", "versions", "TF32"):
        assert f"\n{name} " in f"\n{report}"
        assert f"\n{name} " in block
    for check in CHECKS:
        assert f"  {check} " in report
        assert f"random: {check} " in block
        assert f"random: {check}" in err
    assert "random: very small" in block
    assert str(Path.home()) not in block
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("verdict", "code", "summary"),
    [(OK, 0, "Nothing stands out."), (LOOK, 0, "Nothing is broken;"), (FAIL, 1, "Something is")],
)
def test_the_worst_verdict_decides_summary_and_exit_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verdict: str,
    code: int,
    summary: str,
) -> None:
    give(monkeypatch, verdict)
    ended, out, _ = run(capsys, "doctor")
    assert ended == code
    assert summary in out
    lines = out.splitlines()
    line = lines.index(next(text for text in lines if text.startswith(f"{verdict:4}  only")))
    assert lines[line].endswith("17 of 20")
    assert lines[line + 1].strip() == "It means this."


def test_json_is_one_object_with_all_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, FAIL)
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 1
    record = json.loads(out)
    assert record["schema"] == "mlx_dpo.doctor/1"
    assert record["verdict"] == FAIL
    assert record["machine"]["mlx"]
    assert record["models"] == {"random": "very small"}
    *_, check = record["checks"]
    assert (check["check"], check["verdict"], check["figures"]) == ("only", FAIL, {"number": 17})


def test_a_quantised_model_of_the_users_is_examined_and_not_named(
    packed_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "doctor", "--model", str(packed_folder))
    assert code == 0
    for check in ("packed products", "adapter off", "adapter trains"):
        assert f"  {check} " in out
    assert "model: llama, 0.4 M parameters in 4 bits; LoRA" in out
    assert packed_folder.name not in out
    code, out, err = run(capsys, "doctor", "--model", "absent")
    assert code == 2
    assert "absent: no such model folder" in err
