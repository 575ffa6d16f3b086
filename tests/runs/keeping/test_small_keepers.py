"""Room on disk, sleep, and a parent that starts a crashed run again."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from mlx_dpo.errors import DiskError, MlxDpoError
from mlx_dpo.runs import checkpoint
from mlx_dpo.runs.machine import StepClock, keep_awake
from mlx_dpo.runs.supervise import supervise

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


def test_sleep_is_told_from_work() -> None:
    running, wall = iter([0.0, 5.0, 100.0, 107.0]), iter([0.0, 6.0, 200.0, 3807.0])
    clock = StepClock(lambda: next(running), lambda: next(wall))
    assert clock.lap() == (5.0, 0.0)  # a second's difference is a clock that was set
    clock.restart()
    assert clock.lap() == (7.0, 3600.0)


def test_a_mac_is_kept_awake_and_other_systems_are_left_alone() -> None:
    launched: list[list[str]] = []
    for platform in ("linux", "darwin"):
        with keep_awake(platform=platform, launch=launched.append):
            pass
    assert launched == [["caffeinate", "-is", "-w", str(os.getpid())]]

    def missing(command: list[str]) -> object:
        raise FileNotFoundError

    with keep_awake(platform="darwin", launch=missing):
        pass


DIES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize(("programs", "code"), [([DIES, DIES, "raise SystemExit(75)"], 75)])
def test_a_crashed_run_is_started_again_and_its_exit_code_is_kept(
    tmp_path: Path, programs: list[str], code: int
) -> None:
    left = iter(programs)
    asked: list[bool] = []
    said: list[str] = []

    def command(again: bool) -> list[str]:
        asked.append(again)
        return [sys.executable, "-c", next(left)]

    assert supervise(tmp_path, command, warn=said.append) == code
    assert asked == [False, True, True]
    assert said[-1].startswith("SIGSEGV ended the run")


def test_a_run_that_crashes_four_times_is_given_up_with_a_diagnosis(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 0.6}\n')
    with pytest.raises(MlxDpoError, match="SIGSEGV ended the run 4 times, after steps 1, 1, 1, 1"):
        supervise(tmp_path, lambda again: [sys.executable, "-c", DIES], warn=lambda line: None)
    assert len(json.loads((tmp_path / "crashes.json").read_text())) == 4


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_that_was_meant_ends_the_supervised_run(tmp_path: Path, number: str) -> None:
    meant = f"import os, signal; signal.signal(signal.{number}, signal.SIG_DFL); "
    meant += f"os.kill(os.getpid(), signal.{number})"
    code = supervise(tmp_path, lambda again: [sys.executable, "-c", meant], warn=print)
    assert code in (130, 143)


def test_ctrl_c_is_left_to_the_child(tmp_path: Path) -> None:
    class Child:
        def wait(self) -> int:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            return 75

        def send_signal(self, number: int) -> None:
            passed_on.append(number)

    passed_on: list[int] = []
    code = supervise(tmp_path, lambda again: [], warn=print, launch=lambda command: Child())
    assert (code, passed_on) == (75, [signal.SIGTERM])
