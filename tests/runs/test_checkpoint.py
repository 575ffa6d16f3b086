"""Checkpoints: a resumed run equals a straight one, damage is noticed, a full disk is foreseen."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_dpo.convert.sources import date_of
from mlx_dpo.errors import DiskError, StoppedError, UsageError
from mlx_dpo.insight.scoring import open_model
from mlx_dpo.models.parameters import load_arrays, save_arrays
from mlx_dpo.preferences.chat import today
from mlx_dpo.runs import checkpoint, defaults, folder
from mlx_dpo.runs.callbacks import Save, Screen
from mlx_dpo.runs.run import train
from mlx_dpo.training.trainer import DPOTrainer
from tests.runs.conftest import (
    ORACLE,
    ScoringScreen,
    StopAfter,
    WarningScreen,
    dated_model,
    digest,
    finished,
    metrics,
    new_workplace,
    other_model,
    settings,
    tracker_calls,
)


def test_only_the_newest_two_checkpoints_are_kept_and_the_newest_is_named(workplace: Path) -> None:
    finished(run_dir="run", save_every=1)
    found = sorted(p.name for p in Path("run").glob("step-*"))
    assert found == ["step-000007", "step-000008"]
    # Killed after the last checkpoint was whole, before LATEST named it: the next life does.
    named = Path("run/LATEST").read_bytes()
    Path("run/LATEST").unlink()
    Path("run/result.json").unlink()
    train(settings(run_dir="run", save_every=1), resume=True)
    assert Path("run/LATEST").read_bytes() == named


def test_a_run_that_was_stopped_is_byte_equal_to_a_straight_one_whatever_its_trackers_do(
    workplace: Path, fake_trackers: Path
) -> None:
    finished(run_dir="straight", out="a")
    Path("wandb.fails").write_text("no network")
    tracked = settings(run_dir="broken", out="b", report_to="trackio,wandb")
    for step, number in ((1, signal.SIGTERM), (4, signal.SIGINT)):
        with pytest.raises(StoppedError, match="--resume --run-dir broken"):
            train(tracked, resume=step > 1, screen=StopAfter(step, number))
    assert not Path("b").exists()
    train(tracked, resume=True)
    steps = [call["step"] for call in tracker_calls("trackio") if "loss" in call.get("figures", ())]
    assert steps == list(range(1, 9))
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    for name in ("metrics.jsonl", "held_out.json"):
        assert digest(Path("straight", name)) == digest(Path("broken", name))
    for name in ("weights", "optimizer"):
        file = f"step-000006/{name}.safetensors"
        assert digest(Path("straight", file)) == digest(Path("broken", file))


def test_a_run_goes_on_another_day_with_the_date_it_began_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"model": dated_model(), "run_dir": "run", "out": "out"}
    with pytest.raises(StoppedError):
        train(settings(**options), screen=StopAfter(4))
    began = today()
    monkeypatch.setattr(defaults, "today", lambda: "2031-01-01")
    result = train(settings(**options), resume=True)
    assert result is not None
    assert result.job.chat.date == began
    assert date_of(Path("out")) == began  # for eval and score
    assert open_model("out").chat.date == began
    assert open_model(options["model"]).chat.date == today()


def test_a_resume_with_another_blas_is_warned_about_by_name_and_goes_on(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Warned(StopAfter):
        def __init__(self) -> None:
            super().__init__(5)
            self.warnings: list[str] = []

        def warned(self, text: str) -> None:
            self.warnings.append(text)

    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    same, other = Warned(), Warned()
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), resume=True, screen=same)
    monkeypatch.setattr(folder, "blas", lambda: "openblas 9, 64 threads")
    train(settings(run_dir="run"), resume=True, screen=other)
    assert not same.warnings
    assert "blas was" in other.warnings[0]
    assert "and is openblas 9, 64 threads" in other.warnings[0]


@pytest.mark.parametrize(
    ("name", "damage", "line"),
    [
        (
            "metrics.jsonl",
            lambda lines: [*lines[:1], *(x.replace(b"d_reward", b"d_rewarb") for x in lines[1:])],
            2,
        ),
        ("metrics.jsonl", lambda lines: lines[:3], 4),
        ("samples.jsonl", lambda lines: [], 1),
    ],
)
def test_a_damaged_line_of_a_log_is_named_and_the_run_goes_on(
    workplace: Path, name: str, damage: Callable[[list[bytes]], list[bytes]], line: int
) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run", sample_every=2), screen=StopAfter(4))
    log, screen = Path("run", name), WarningScreen()
    log.write_bytes(b"".join(damage(log.read_bytes().splitlines(keepends=True))))
    train(settings(run_dir="run", sample_every=2), resume=True, screen=screen)
    assert f"run/{name}:{line}: not the line that was written" in screen.warnings[0]


def test_resume_cuts_what_was_logged_after_the_checkpoint(workplace: Path) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 123}\n{"step": 6, "lo')  # a killed run's last words
    train(settings(run_dir="run"), resume=True)
    assert [row["step"] for row in metrics("run")] == list(range(8))
    assert all(row["loss"] < 100 for row in metrics("run"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"beta": 0.2}, "beta"),
        ({"steps": 9}, "number of steps"),
        ({"learning_rate": 2e-3}, "learning rate"),
        ({"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_resume_refuses_another_trajectory_and_names_the_difference(
    workplace: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    with pytest.raises(UsageError, match=f"another {named}"):
        train(settings(run_dir="run", **changes), resume=True)


def test_resume_refuses_other_data(workplace: Path) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    rows = json.loads(Path("pairs.json").read_text())
    Path("pairs.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(UsageError, match="another data"):
        train(settings(run_dir="run"), resume=True)


def test_resume_without_a_checkpoint_starts_from_step_0(workplace: Path) -> None:
    resumed = []

    class ResumeScreen(Screen):
        def resumed(self, step: int) -> None:
            resumed.append(step)

    train(settings(run_dir="run"), resume=True, screen=ResumeScreen())
    assert resumed == [0]
    assert len(metrics("run")) == 8


def test_a_refused_resume_leaves_the_run_as_it_was(workplace: Path) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="another beta"):
        train(settings(run_dir="run", beta=0.2), resume=True)
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


def test_the_same_weights_under_another_config_are_another_model(workplace: Path) -> None:
    finished(out="a")  # leaves reference log-probs behind
    changed = other_model(rope_theta=500.0)
    screen = ScoringScreen()
    with pytest.raises(StoppedError):
        train(settings(model=changed, run_dir="run", out="b"), screen=StopAfter(4))
    assert train(settings(model=changed, steps=2, out="c"), screen=screen) is not None
    assert screen.scored == []  # its own log-probs, from the run above
    shutil.copy(ORACLE / "config.json", "model/config.json")
    with pytest.raises(UsageError, match="another model"):
        train(settings(model=changed, run_dir="run", out="b"), resume=True)


def test_a_stop_inside_an_accumulated_step_gives_the_step_up_and_makes_it_again(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"grad_accumulation": 3, "steps": 4}
    train(settings(run_dir="straight", out="a", **asked))
    batches = []
    real = Save.before_batch

    def before_batch(self: Save, trainer: DPOTrainer) -> None:
        batches.append(trainer.step)
        if batches.count(2) == 2:  # the second batch of the third step
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Save, "before_batch", before_batch)
        with pytest.raises(StoppedError, match="after step 2 of 4"):
            train(settings(run_dir="broken", out="b", **asked))
    assert batches.count(2) == 2
    train(settings(run_dir="broken", out="b", **asked), resume=True)
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    assert digest(Path("straight/metrics.jsonl")) == digest(Path("broken/metrics.jsonl"))


def damage(name: str, change: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda checkpoint: change(checkpoint / name)


def emptied(file: Path) -> None:
    file.write_text("{}")


def without_one_tensor(file: Path) -> None:
    arrays = load_arrays(file)
    arrays.pop(min(arrays))
    save_arrays(file, arrays)


CHANGES = [
    damage("state.json", Path.unlink),
    damage("state.json", emptied),
    damage("MANIFEST.json", emptied),
    damage("weights.safetensors", Path.unlink),
    damage("weights.safetensors", without_one_tensor),
    damage("optimizer.safetensors", without_one_tensor),
    damage("weights.safetensors", lambda file: os.truncate(file, 1000)),
    damage("notes.txt", Path.touch),
]


@pytest.fixture(scope="module")
def straight_and_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and one that was stopped after step 4; copied by each test that harms it."""
    with pytest.MonkeyPatch.context() as patch:
        folder = new_workplace(tmp_path_factory.mktemp("runs"), patch)
        finished(run_dir="straight", out="a")
        with pytest.raises(StoppedError):
            train(settings(run_dir="run", out="b"), screen=StopAfter(4))
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    straight_and_stopped: Path, workplace: Path, change: Callable[[Path], None]
) -> None:
    shutil.copytree(straight_and_stopped, workplace, dirs_exist_ok=True)
    screen = WarningScreen()
    change(Path("run/step-000005"))
    assert train(settings(run_dir="run", out="b"), resume=True, screen=screen) is not None
    assert re.match(
        r"run/step-000005: damaged: .*going on from run/step-000003", screen.warnings[0]
    )
    assert not Path("run/step-000005").exists()
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    assert digest(Path("straight/metrics.jsonl")) == digest(Path("run/metrics.jsonl"))


def test_a_run_without_any_whole_checkpoint_is_refused_and_not_begun_anew(workplace: Path) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    for name in ("step-000003", "step-000005"):
        CHANGES[0](Path("run", name))
    with pytest.raises(UsageError, match=r"step-000005: damaged: .*no checkpoint of this run is"):
        train(settings(run_dir="run"), resume=True)


GIB = 2**30


def test_a_disk_without_room_for_all_of_a_run_is_named_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs = [("checkpoints", tmp_path / "run", GIB), ("the finished model", tmp_path / "out", GIB)]
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 2 * GIB)
    with pytest.raises(DiskError, match=r"2\.00 GiB free, and this run writes up to 2\.03 GiB"):
        checkpoint.check_room(needs)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 3 * GIB)
    checkpoint.check_room(needs)


def test_a_run_without_room_for_its_checkpoints_does_not_begin(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 10**6)
    with pytest.raises(DiskError, match=r"this run writes up to .* make room first") as raised:
        train(settings(run_dir="run"))
    assert raised.value.exit_code == 7
    assert not Path("run").exists()
