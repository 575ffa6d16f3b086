"""A parent process restarts a run that crashed."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from mlx_dpo.errors import MlxDpoError
from mlx_dpo.runs.folder import check_ours
from mlx_dpo.runs.supervise import supervise

DIES = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.parametrize(("programs", "code"), [([DIES, DIES, "raise SystemExit(75)"], 75)])
def test_a_crashed_run_is_started_again_and_its_exit_code_is_kept(
    tmp_path: Path, programs: list[str], code: int
) -> None:
    left = iter(programs)
    asked: list[bool] = []
    warnings: list[str] = []

    def command(again: bool) -> list[str]:
        asked.append(again)
        return [sys.executable, "-c", next(left)]

    assert supervise(tmp_path, command, warn=warnings.append) == code
    assert asked == [False, True, True]
    assert warnings[-1].startswith("SIGSEGV ended the run")


def test_a_run_that_crashes_four_times_is_given_up_with_a_diagnosis(tmp_path: Path) -> None:
    rows = '{"step": 0, "loss": 0.6}\n{"step": 1, "held_out": {"loss": 0.6}}\n'
    (tmp_path / "metrics.jsonl").write_text(rows)
    with pytest.raises(MlxDpoError, match="SIGSEGV ended the run 4 times, after steps 1, 1, 1, 1"):
        supervise(tmp_path, lambda again: [sys.executable, "-c", DIES], warn=lambda line: None)
    assert len(json.loads((tmp_path / "crashes.json").read_text())) == 4


STEP = '{"step": 0, "loss": 0.6}\n'


class Ends:
    """A process that ends with an exit code."""

    def __init__(self, code: int) -> None:
        self._code = code

    def wait(self) -> int:
        return self._code

    def send_signal(self, number: int) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("codes", "ends", "pauses"),
    [((9, 9, 0), 0, [60, 120]), ((-9, 9, 75), 75, [120]), ((1,), 1, [])],
)
def test_lost_peers_are_looked_for_again_after_a_pause_that_grows(
    tmp_path: Path, codes: tuple[int, ...], ends: int, pauses: list[int]
) -> None:
    left, waited = iter(codes), list[float]()

    def launch(command: list[str]) -> Ends:
        (tmp_path / "metrics.jsonl").write_text(STEP)
        return Ends(next(left))

    code = supervise(tmp_path, lambda again: [], warn=print, launch=launch, pause=waited.append)
    assert (code, waited, list(left)) == (ends, pauses, [])


@pytest.mark.parametrize("before", ["", STEP])
def test_lost_peers_end_a_run_at_once_before_its_first_step_and_after_three_times(
    tmp_path: Path, before: str
) -> None:
    launched, waited, logged = list[list[str]](), list[float](), [before]
    (tmp_path / "metrics.jsonl").write_text(before)  # of a run that is resumed

    def launch(command: list[str]) -> Ends:
        launched.append(command)
        (tmp_path / "metrics.jsonl").write_text("".join(logged))
        return Ends(9)

    def run() -> int:
        return supervise(tmp_path, lambda again: [], warn=print, launch=launch, pause=waited.append)

    assert (run(), len(launched), waited) == (9, 1, [])
    logged.append(STEP)
    with pytest.raises(MlxDpoError, match="a lost peer ended the run 4 times"):
        run()
    assert (len(launched), waited) == (5, [60, 120, 180])


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


def test_a_crash_before_the_run_has_anything_leaves_a_folder_that_a_run_may_take(
    tmp_path: Path,
) -> None:
    run, left = tmp_path / "run", iter([DIES, "raise SystemExit(0)"])
    command = [sys.executable, "-c"]
    assert supervise(run, lambda again: [*command, next(left)], warn=lambda line: None) == 0
    assert json.loads((run / "crashes.json").read_text())[0]["steps_logged"] == 0
    check_ours(run, resume=False)
