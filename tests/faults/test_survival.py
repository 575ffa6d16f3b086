"""A small size of what `make torture` tries in full, in processes of their own."""

import json
import subprocess
import sys

import pytest

from tests.faults.forks import FORKS
from tests.faults.system_calls import missing, started

pytestmark = pytest.mark.survival

# By name, not imported: forks must come from a process in which MLX has computed nothing.
ROW = [sys.executable, "-m", "tests.faults.torture", "--here", "--seed", "3"]
PHASES = """
import sys, tempfile, signal
from pathlib import Path
from tests.faults import lives
from tests.faults.forks import run_child

lives.STEPS = 8
lives.preload()
folder = Path(tempfile.mkdtemp())
expected = lives.straight(folder / "straight")
for number, (phase, (target, name)) in enumerate(lives.phases().items()):
    which = (signal.SIGTERM, signal.SIGINT)[number % 2]
    before = lives.signal_when(target, name, which)
    found = lives.stopped_once(folder / str(number), expected, before)
    assert found == (75, ""), (phase, found)

# A second one leaves at once, and what is on disk is whole.
twice = lives.signal_when(*lives.phases()["sampling"], signal.SIGINT, signal.SIGINT)
place = lives.workplace(folder / "twice")
assert run_child(lives.live(place, twice), quiet=True) == -signal.SIGINT
assert lives.finish(place, expected) == ""
print("all phases")
"""

# As on macOS, where children can't be forked.
STARTED_ANEW = """
import signal, tempfile
from pathlib import Path
from tests.faults import forks, lives

forks.FORKS = False
lives.STEPS = 4
folder = Path(tempfile.mkdtemp())
expected = lives.straight(folder / "straight")
before = lives.signal_when(*lives.phases()["step"], signal.SIGTERM)
found = lives.stopped_once(folder / "stopped", expected, before)
assert found == (75, ""), found
assert sorted(lives.start_together(folder / "together", 2)) == [0, 6]
print("the same")
"""

RANKS = """
import signal, tempfile
from pathlib import Path
from tests.faults import lives, ranks

lives.STEPS = 4
lives.preload()
folder = Path(tempfile.mkdtemp())
expected, _ = ranks.straight(folder / "straight", 2)

# Killed in the third step, in which the other waits for it: a checkpoint of the second is there.
third = lives.signal_when("mlx_dpo.training.step:Step", "_whole", signal.SIGKILL, call=3)
killed = ranks.workplace(folder / "killed")
codes, _ = ranks.live(killed, 2, {0: third})
assert codes == [-signal.SIGKILL, 9], codes
assert (killed / "run" / "step-000002").exists()
assert ranks.finish(killed, 2, expected) == ""

stopped = ranks.workplace(folder / "stopped")
evaluation = lives.phases()["evaluation"]
codes, _ = ranks.live(stopped, 2, {1: lives.signal_when(*evaluation, signal.SIGTERM)})
assert codes == [75, 75], codes
assert (stopped / "run" / "LATEST").exists()

step = ("mlx_dpo.training.peers:Group", "complete")
silent = {1: lives.signal_when(*step, signal.SIGSTOP)}
assert ranks.silenced(ranks.workplace(folder / "silent"), 2, silent) == [9]

early = ranks.workplace(folder / "early")
assert ranks.live(early, 2, {1: lives.signal_when(*step, signal.SIGTERM)})[0] == [75, 75]
assert not (early / "run" / "metrics.jsonl").exists()

other = ranks.workplace(folder / "other")
assert ranks.live(other, 2, words={1: ["--beta", "0.2"]})[0] == [2, 2]
assert not (other / "run").exists()
print("all ranks")
"""


@pytest.mark.parametrize(
    ("row", "count"), [("save-kill", 1), ("save-power", 1), ("save-full", 1), ("damage", 40)]
)
def test_an_interrupted_save_or_damaged_checkpoint_costs_nothing_before_it(
    row: str, count: int
) -> None:
    done = subprocess.run([*ROW, f"{row}={count}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tries, good, _ = json.loads(done.stdout)
    assert good == tries >= 18, done.stderr


@pytest.mark.parametrize(("row", "count"), [("kills", 1), ("starts", 3)])
def test_real_runs_that_are_killed_or_begun_together_end_as_one_straight_run(
    row: str, count: int
) -> None:
    done = subprocess.run([*ROW, f"{row}={count}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tries, good, _ = json.loads(done.stdout)
    assert good == tries >= count, done.stderr


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize(
    ("kind", "only"), [("kill", "train,import"), ("error", "convert,label,split")]
)
def test_a_command_that_fails_at_a_system_call_does_when_it_is_given_again(
    kind: str, only: str
) -> None:
    ran = started(kind, 5, seed=3, only=only)
    assert ran.returncode == 0
    tries, good, _ = json.loads(ran.stdout)
    assert good == tries == 5


@pytest.mark.skipif(not FORKS, reason="too slow where children can't be forked")
def test_changed_files_and_simultaneous_first_runs_cost_no_result() -> None:
    for words in (
        ["left_files", "6", "--only", "report"],
        ["torture", "caches=1", "--here"],
    ):
        command = [sys.executable, "-m", f"tests.faults.{words[0]}", *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        tries, good, _ = json.loads(done.stdout)
        assert good == tries > 0, done.stderr


def test_a_stop_in_any_phase_exits_75_and_costs_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PHASES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all phases\n"


def test_children_that_are_started_anew_live_as_forked_ones_do() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTED_ANEW], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the same\n"


def test_ranks_end_together_and_go_on_together() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RANKS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all ranks\n"
