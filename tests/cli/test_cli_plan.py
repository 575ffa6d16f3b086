"""`mlx_dpo plan` and `train --memory-budget` as they are typed."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.memory.settings import Settings
from mlx_dpo.memory.solve import solve
from mlx_dpo.preferences import encoding, store
from tests.cli.conftest import run
from tests.memory.test_shapes import emptied
from tests.runs.conftest import ORACLE, ROWS

pytestmark = pytest.mark.usefixtures("workplace")
MODEL = ["--model", str(ORACLE), "--data", "pairs.json", "--batch-size", "4"]
TRAIN = [*MODEL, "--steps", "2", "--run-dir", "run", "--out", "out"]


def planned(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, object]:
    code, out, _ = run(capsys, "plan", "--json", *MODEL, *args)
    assert code == 0
    found: dict[str, object] = json.loads(out)
    return found


def test_a_plan_names_what_is_held_and_on_which_machines_it_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, "plan", *MODEL, "--reference", "copy")
    assert code == 0
    for word in ("weights", "optimizer state", "logits", "copy", "peak", "8 GB", "fits"):
        assert word in out
    assert not Path("runs").exists()


def test_a_calibrated_plan_says_how_long_an_epoch_takes_under_the_settings_it_chose(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, "plan", *MODEL, "--calibrate")
    assert code == 0
    assert "an epoch   about 0:00:0" in out
    assert "for the reference" in out
    assert planned(capsys)["calibration"] is None
    copied = planned(capsys, "--calibrate", "--reference", "copy")["calibration"]
    assert isinstance(copied, dict)
    assert copied["reference_seconds"] == 0
    assert not Path("runs").exists()


def test_a_plan_reads_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = planned(capsys)
    folder = emptied(ORACLE, tmp_path / "empty")
    assert planned(capsys, "--model", str(folder)) == whole


def test_parts_add_up_to_the_peak_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys)
    parts = found["parts"]
    assert isinstance(parts, dict)
    assert sum(parts.values()) == found["peak_bytes"]
    assert found["chosen"] is None


def test_a_budget_is_kept_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    peak = planned(capsys, "--reference", "copy")["peak_bytes"]
    assert isinstance(peak, int)
    budget = f"{peak * 3 // 4 // 1024}KB"
    found = planned(capsys, "--memory-budget", budget)
    chosen = found["chosen"]
    assert isinstance(chosen, dict)
    assert chosen["peak_bytes"] <= peak * 3 // 4 < peak
    assert chosen["settings"]["batch_size"] == 4  # given by hand
    code, out, _ = run(capsys, "plan", *MODEL, "--memory-budget", budget)
    assert code == 0
    assert "budget" in out


def test_where_nothing_fits_the_exit_code_is_four_and_one_line_says_what_would(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, "plan", *MODEL, "--memory-budget", "10KB")
    assert (code, out) == (4, "")
    searching, refusal = err.splitlines()
    assert searching == "looking for settings within the budget ..."
    assert "no setting would fit: it takes a larger budget or a smaller model" in refusal


@pytest.mark.parametrize("size", ["8", "much", "0GB", "-1GB", "1e3GB"])
def test_what_is_no_size_is_wrong_usage(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "plan", *MODEL, "--memory-budget", size)
    assert code == 2
    assert "expected a size such as 8GB" in err


def test_a_run_within_a_budget_goes_on_with_the_settings_it_began_with(
    capsys: pytest.CaptureFixture[str],
) -> None:
    peak = planned(capsys, "--steps", "2")["peak_bytes"]
    assert isinstance(peak, int)
    code, _, err = run(capsys, "train", *TRAIN, "--memory-budget", f"{peak * 4 // 5 // 1024}KB")
    assert code == 0
    assert "memory: --checkpoint-layers" in err
    written = tomllib.loads(Path("run/config.toml").read_text())
    assert written["checkpoint_layers"] is True
    Path("run/result.json").unlink()
    code, _, err = run(capsys, "train", "--resume", "--run-dir", "run", "--overwrite")
    assert code == 0
    assert "memory:" not in err


def test_a_run_that_does_not_fit_leaves_nothing_but_token_ids_behind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = run(capsys, "train", *TRAIN, "--memory-budget", "10KB")
    assert code == 4
    planning, refusal = err.splitlines()
    assert planning.startswith("planning memory")
    assert refusal.startswith("mlx_dpo: ")
    assert sorted(path.name for path in Path().iterdir()) == ["pairs.json", "runs"]
    assert [path.name for path in Path("runs").iterdir()] == [store.FOLDER.name]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read and tokenized while a test runs."""
    files: list[Path] = []
    ingest = encoding.ingest

    def noted(path: Path, *args: Any) -> Any:
        files.append(path)
        return ingest(path, *args)

    monkeypatch.setattr(store, "ingest", noted)
    return files


def test_with_a_budget_too_pairs_are_tokenized_once_and_not_again_by_the_next_run(
    capsys: pytest.CaptureFixture[str], passes: list[Path]
) -> None:
    assert run(capsys, "train", *TRAIN, "--dry-run", "--memory-budget", "8GB")[0] == 0
    assert len(passes) == 1  # a dry run keeps nothing
    assert run(capsys, "train", *TRAIN, "--memory-budget", "8GB")[0] == 0
    assert len(passes) == 2
    again = ("train", *MODEL, "--steps", "2", "--run-dir", "other", "--out", "other-out")
    assert run(capsys, *again, "--memory-budget", "8GB")[0] == 0
    assert len(passes) == 2


def test_with_a_budget_too_problems_of_the_data_are_shown_before_it_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [*ROWS, {"user": "no answers"}, {"user": "nor here"}]
    Path("pairs.json").write_text(json.dumps(rows))
    shown = [run(capsys, "train", *TRAIN, *b) for b in ((), ("--memory-budget", "8GB"))]
    assert shown[0] == shown[1]
    code, _, err = shown[0]
    assert code == 3
    assert err.count("error: pairs.json") == 3
    assert "error: 1 more missing-key (row 16)" in err  # two keys are missing in each row


def test_with_a_budget_too_problems_are_shown_once_where_bad_rows_are_dropped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("pairs.json").write_text(json.dumps([*ROWS, {"user": "no answers"}]))
    options = ("--drop-bad", "--dry-run", "--memory-budget", "8GB")
    code, _, err = run(capsys, "train", *TRAIN, *options)
    assert code == 0
    assert err.count("left out: pairs.json: 2 x missing-key") == 1


def test_a_budget_is_solved_once_while_nothing_changes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = planned(capsys, "--steps", "2")["peak_bytes"]
    assert isinstance(peak, int)
    solved: list[int] = []

    def noted(asked: Settings, budget: int, *args: Any) -> Any:
        solved.append(budget)
        return solve(asked, budget, *args)

    monkeypatch.setattr("mlx_dpo.runs.plan.solve", noted)
    budget = peak * 4 // 5 // 1024

    def train(name: str, size: int, *options: str) -> str:
        places = ("--run-dir", name, "--out", f"{name}-out", "--memory-budget", f"{size}KB")
        code, _, err = run(capsys, "train", *MODEL, "--steps", "2", *places, *options)
        assert code == 0
        return "".join(line for line in err.splitlines() if line.startswith("memory:"))

    first = train("a", budget)
    assert train("b", budget) == first
    assert len(solved) == 1
    train("c", budget + 1)
    assert len(solved) == 2
    train("d", budget, "--max-length", "20")
    assert len(solved) == 3
    for file in Path("runs/.plans").iterdir():
        file.write_text("{}")
    assert train("e", budget) == first
    assert len(solved) == 4


def test_a_device_that_recommends_too_little_is_warned_of_and_not_obeyed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_dpo.runs.plan.recommended_here", lambda: 1000)
    code, _, err = run(capsys, "train", *TRAIN)
    assert code == 0
    assert "warning: a run needs" in err
    assert tomllib.loads(Path("run/config.toml").read_text())["optimizer"] == "adamw"
