"""`mlx_dpo profile` as it is typed."""

import importlib
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import mlx.core as mx
import pytest

from mlx_dpo.convert.sources import load_folder
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.runs.meter import Meter
from tests.cli.conftest import run
from tests.runs.conftest import ORACLE

pytestmark = pytest.mark.usefixtures("workplace")
command = importlib.import_module("mlx_dpo.cli.profile")  # the name is the command's too
JOB = ["--model", str(ORACLE), "--data", "pairs.json", "--batch-size", "4", "--steps", "1"]


def profiled(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    code, out, err = run(capsys, "profile", "--json", *JOB, *args)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def model_bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_the_phases_add_up_to_the_whole(capsys: pytest.CaptureFixture[str]) -> None:
    found = profiled(capsys)
    phases = found["phases"]
    assert list(phases) == [
        *("load", "reference", "check", "forward", "backward", "update", "evaluation")
    ]
    assert found["between_seconds"] >= 0
    summed = sum(phase["seconds"] for phase in phases.values()) + found["between_seconds"]
    assert summed == pytest.approx(found["seconds"], abs=1e-6)
    for phase in phases.values():
        assert phase["peak_bytes"] >= phase["live_bytes"]
        assert phase["footprint_bytes"] > 0
    assert found["peak_bytes"] == max(phase["peak_bytes"] for phase in phases.values())


def test_held_components_are_those_of_the_shapes(capsys: pytest.CaptureFixture[str]) -> None:
    weights = sum(a.nbytes for a in named_arrays(load_folder(ORACLE)[0].parameters()).values())
    held = profiled(capsys, "--reference", "copy")["held_bytes"]
    assert held["weights"] == held["reference"] == held["gradients"] == weights
    assert held["rest"] > 0
    # Two moments; beside them a step count and a learning rate.
    assert 0 < held["optimizer"] - 2 * weights < 100
    assert profiled(capsys, "--grad-clip", "0")["held_bytes"]["gradients"] == 0


def test_gradients_are_what_is_live_between_backward_and_update(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = profiled(capsys)
    added = found["phases"]["backward"]["live_bytes"] - found["phases"]["update"]["live_bytes"]
    assert added == pytest.approx(found["held_bytes"]["gradients"], rel=0.05)


def test_a_profile_writes_nothing(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = model_bytes(ORACLE)
    profiled(capsys)
    assert [path.name for path in workplace.iterdir()] == ["pairs.json"]
    assert model_bytes(ORACLE) == before


def test_accumulated_batches_and_steps_beyond_an_epoch_are_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = profiled(capsys, "--grad-accumulation", "2", "--batch-size", "2", "--steps", "9")
    assert found["steps"] == 9
    assert found["phases"]["backward"]["count"] == found["phases"]["forward"]["count"] > 9


def test_the_table_ends_with_what_dominates(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "profile", *JOB)
    assert code == 0
    last = " ".join(out.rpartition("\n\n")[2].split())
    assert "dominates (" in last
    assert "lowers the peak most" in last


def test_each_value_of_a_compared_setting_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    found = profiled(capsys, "--compare", "reference")
    assert list(found) == ["--reference copy", "--reference cached"]
    copy, cached = (row["held_bytes"] for row in found.values())
    assert copy["reference"] == copy["weights"]
    assert cached["reference"] == 0


def test_pictures_stand_alone(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "profile", *JOB, "--out", "p.svg", "--out", "p.html")
    assert code == 0, err
    drawing, page = (workplace / "p.svg").read_text(), (workplace / "p.html").read_text()
    root = ElementTree.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "<script" not in drawing
    for text in (drawing, page):
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "")
        for name in ("weights", "reference", "optimizer", "gradients", "activations", "backward"):
            assert name in text
    assert page.count("<svg") == page.count("</svg>") == 2


def test_a_picture_of_another_kind_is_refused_before_anything_is_measured(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "profile", *JOB, "--out", "p.png")
    assert code == 2
    assert "--out p.png: expected a name that ends in .html or .svg" in err
    assert not (workplace / "p.png").exists()


def test_what_goes_wrong_is_one_line_with_the_code_of_train(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, "profile", *JOB, "--data", "missing.json")
    assert (code, out) == (run(capsys, "train", *JOB, "--data", "missing.json")[0], "")
    assert "missing.json" in err
    assert len(err.splitlines()) == 1


def test_a_comparison_of_which_nothing_worked_fails_as_its_first_did(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_in_process", lambda *_: (4, {"error": "not enough memory"}))
    code, out, err = run(capsys, "profile", *JOB, "--compare", "dtype")
    assert (code, out) == (4, "")
    assert err.splitlines()[-1] == "mlx_dpo: not enough memory"


def test_a_phase_entered_twice_adds_its_times_and_keeps_the_larger_peak() -> None:
    meter = Meter()
    with meter.running():
        for size in (1 << 20, 1 << 10):
            with meter.phase("work"):
                array = mx.zeros((size,))
                mx.eval(array)
                del array
    assert meter.phases["work"].count == 2
    assert meter.phases["work"].peak_bytes >= 4 << 20
    assert {"work"} <= {sample.phase for sample in meter.samples}
