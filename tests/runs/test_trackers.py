"""Trackers get each step once, under TRL's names, and whatever they do the run goes on."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_dpo.cli import cli
from mlx_dpo.errors import UsageError
from mlx_dpo.runs import tracker_process, trackers
from mlx_dpo.runs.config import RunConfig, read_settings, resolve
from mlx_dpo.runs.tracker_process import Follower, Tracked, check_installed
from mlx_dpo.runs.trackers import Trackers, settings_of
from tests.runs.conftest import WarningScreen, settings, tracker_calls

STEP = {
    **{"loss": 0.5, "lr": 1e-4, "grad_norm": 2.0, "chosen_reward": 0.1},
    **{"rejected_reward": -0.2, "reward_margin": 0.3, "accuracy": 0.75},
}
HELD_OUT = {name: value for name, value in STEP.items() if name not in ("lr", "grad_norm")}
SENT = {
    **{"loss": 0.5, "learning_rate": 1e-4, "grad_norm": 2.0, "rewards/chosen": 0.1},
    **{"rewards/rejected": -0.2, "rewards/margins": 0.3, "rewards/accuracies": 0.75},
}
SENT_HELD_OUT = {
    **{"eval_loss": 0.5, "eval_rewards/chosen": 0.1, "eval_rewards/rejected": -0.2},
    **{"eval_rewards/margins": 0.3, "eval_rewards/accuracies": 0.75},
}


class TrackerScreen(WarningScreen):
    """Records what is said of trackers."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def tracked(self, text: str) -> None:
        self.told.append(text)


def log(*steps: int, held_out: int | None = None) -> None:
    """Write metrics.jsonl of a run with these steps; one of them is followed by an evaluation."""
    rows: list[dict[str, Any]] = []
    for step in steps:
        rows.append({"step": step, **STEP})
        rows += [{"step": step, "held_out": HELD_OUT}] if step == held_out else []
    Path("run").mkdir(exist_ok=True)
    Path("run/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def followed(
    tracker: str = "wandb", *, is_done: bool = True, ending: Any = None
) -> tuple[bool, list[dict[str, Any]]]:
    """Whether all of the log was sent, and what the process told, of a run that has ended."""
    told = list[dict[str, Any]]()
    if ending is None:
        ending = Event()
        ending.set()
    run = Tracked(tracker, "run", "name", "group", {"beta": 0.1}, steps_per_epoch=4)
    return Follower(run, ending, told.append).follow(lambda: is_done), told


def steps_of(tracker: str) -> list[tuple[int, bool]]:
    """Step of each call, and whether it is of an evaluation."""
    calls = tracker_calls(tracker)
    return [(call["step"], "eval_loss" in call["figures"]) for call in calls if "step" in call]


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_tracker_gets_trls_names_and_the_settings(fake_trackers: Path, tracker: str) -> None:
    log(0, 1, held_out=1)
    is_whole, told = followed(tracker)
    begun, *sent, finished = tracker_calls(tracker)
    assert is_whole
    assert (begun["project"], begun["group"]) == ("mlx-dpo", "group")
    assert begun["config"] == {"beta": 0.1}
    assert sent == [
        {"figures": {**SENT, "epoch": 0.25}, "step": 1},
        {"figures": {**SENT, "epoch": 0.5}, "step": 2},
        {"figures": SENT_HELD_OUT, "step": 2},
    ]
    assert "finished" in finished
    assert told[-1] == {"sent": 2}


def test_tensorboard_gets_them_too_and_hides_what_a_killed_process_wrote(
    fake_trackers: Path,
) -> None:
    log(0, held_out=0)
    followed("tensorboard")
    log(0, 1, held_out=0)
    followed("tensorboard")
    calls = tracker_calls("tensorboardX")
    scalars = {(c["tag"], c["step"]): c["value"] for c in calls if "value" in c}
    expected = {**SENT, **SENT_HELD_OUT, "epoch": 0.25}
    assert {tag: value for (tag, step), value in scalars.items() if step == 1} == expected
    assert [call.get("purge_step") for call in calls if "logdir" in call] == [None, 2]
    assert len(scalars) == sum("value" in call for call in calls)


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_in_the_same_curve_with_each_step_once(
    fake_trackers: Path, tracker: str
) -> None:
    log(0, 1, 2)
    followed(tracker, is_done=False)
    log(0, 1)  # cut to the checkpoint
    followed(tracker, is_done=False)
    log(0, 1, 2, 3, held_out=2)  # step 2 is made again, and evaluated this time
    followed(tracker)
    assert steps_of(tracker) == [(1, False), (2, False), (3, False), (3, True), (4, False)]
    names = {(c.get("id"), c["name"]) for c in tracker_calls(tracker) if "project" in c}
    assert len(names) == 1
    if tracker == "wandb":
        ends = [call["finished"] for call in tracker_calls(tracker) if "finished" in call]
        assert ends == [1, 1, 0]


def test_half_a_line_is_left_until_it_is_whole(fake_trackers: Path) -> None:
    log(0, 1)
    file = Path("run/metrics.jsonl")
    text = file.read_text()
    file.write_text(text[:-20])
    followed()
    file.write_text(text)
    followed()
    assert steps_of("wandb") == [(1, False), (2, False)]


def test_what_an_outage_held_up_is_sent_after_it(fake_trackers: Path) -> None:
    log(0, 1)
    Path("wandb.fails").write_text("down: key 0123456789abcdef0123456789abcdef01234567")
    is_whole, told = followed()
    assert not is_whole
    assert told[-1] == {"failed": "down: key ..."}
    Path("wandb.fails").unlink()
    assert followed()[0]
    assert steps_of("wandb") == [(1, False), (2, False)]


def test_a_call_that_fails_is_made_again_after_a_pause(fake_trackers: Path) -> None:
    log(0, 1)
    Path("wandb.fails").write_text("down")
    pauses: list[float] = []

    class Ending(Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0)
            if len(pauses) == 3:
                Path("wandb.fails").unlink()
            return len(pauses) == 3

    assert followed(ending=Ending())[0]
    assert steps_of("wandb") == [(1, False), (2, False)]
    assert pauses == [0, 2, 4]


def job_of(**changes: Any) -> Any:
    return SimpleNamespace(
        config=settings(report_to="wandb", **changes),
        train=SimpleNamespace(examples=[0] * 10),
        held_out=SimpleNamespace(examples=[0] * 3),
        max_steps=8,
    )


def test_a_tracker_that_hangs_holds_no_step_and_is_warned_of_once(
    fake_trackers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("wandb.hangs").touch()
    monkeypatch.setattr(trackers, "PATIENCE", -1.0)  # so that the first step finds it silent
    log(*range(8))
    screen = TrackerScreen()
    with Trackers(job_of(), Path("run"), screen, wait=0.0) as tracking:
        tracking._links[0].hear(60)  # its run has begun; now its first step hangs
        for step in range(8):
            trainer: Any = SimpleNamespace(step=step + 1)
            tracking.after_step(trainer, step, STEP)
    assert [text[:16] for text in screen.warnings] == ["wandb: no answer"]
    assert screen.told == [
        "wandb: https://wandb.example/mine",
        "wandb: 8 of 8 steps were not sent; run/metrics.jsonl has every step",
    ]


def test_a_process_that_does_not_start_is_a_warning(
    fake_trackers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = TrackerScreen()
    monkeypatch.setattr(sys, "executable", "missing/python")
    with Trackers(job_of(), Path("run"), screen):
        pass
    assert [text[:19] for text in screen.warnings] == ["wandb: not started:"]


def test_settings_go_along_without_paths(fake_trackers: Path, tmp_path: Path) -> None:
    paths = {name: str(tmp_path / f"my-{name}") for name in ("model", "data", "eval_data")}
    folders = {"out": str(tmp_path / "o"), "run_dir": str(tmp_path / "r"), "adapter": "../me/a"}
    job = job_of(**paths, **folders, lora_modules="q_proj")
    found = settings_of(job)
    assert (found["model"], found["data"], found["adapter"]) == ("my-model", "my-data", "a")
    assert found["training_pairs"] == 10
    assert str(tmp_path) not in json.dumps(found)
    assert "me/" not in json.dumps(found)
    unset = {field.name for field in fields(RunConfig) if getattr(job.config, field.name) is None}
    own = {field.name for field in fields(RunConfig)} - unset
    assert own - set(found) == {"out", "run_dir", "overwrite", "report_to"}


def test_a_beta_of_a_sweep_is_named_and_grouped_by_its_sweep() -> None:
    tracked = trackers._tracked("wandb", job_of(), Path("runs/sweep/beta-0.1/run"))
    assert (tracked.name, tracked.group) == ("sweep-beta-0.1", "sweep")
    assert trackers._tracked("wandb", job_of(), Path("runs/mine-1")).name == "mine-1"
    assert tracked.steps_per_epoch == 5


def test_a_missing_package_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracker_process.PACKAGES, "wandb", "not_installed")
    (tmp_path / "not_installed").mkdir()  # as wandb's own files lie in a folder of its name
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"--report-to wandb needs not_installed: pip install .*"):
        check_installed("none,wandb")
    check_installed("none")


@pytest.mark.parametrize(
    ("value", "text"),
    [('"wandb, trackio"', "wandb, trackio"), ('["wandb", "trackio"]', "wandb,trackio")],
)
def test_several_trackers_are_a_text_a_list_or_options(
    tmp_path: Path, value: str, text: str
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'model = "m"\ndata = "d"\nreport_to = {value}\n')
    assert read_settings(file)["report_to"] == text
    assert tracker_process.trackers_of(text) == ("wandb", "trackio")
    assert resolve(file, {"report_to": "none"}).report_to == "none"
    typed = cli.commands["train"].make_context("t", ["--report-to", "a", "--report-to", "b"])
    assert typed.params["report_to"] == "a,b"
    with pytest.raises(UsageError, match="--report-to: expected trackio, wandb or tensorboard"):
        resolve(file, {"report_to": "wandb,comet"})
