"""One run per folder."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlx_dpo.errors import DiskError, LockedError
from mlx_dpo.runs import guards
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.guards import HOLDER, LOCK, check_free, locked
from mlx_dpo.runs.run import train
from mlx_dpo.training.loss import Metrics
from tests.runs.conftest import settings

HOLD = """
import os, sys
from pathlib import Path
from mlx_dpo.runs.guards import locked
with locked(Path(sys.argv[1])):
    os.write(1, b"held\\n")
    sys.stdin.read()
"""
# The child has the lock's file open, as any has between fork and exec. `os.fork` would not do:
# filelock lets go of a lock in the child.
HOLD_WITH_A_CHILD = """
import os, subprocess, sys
from pathlib import Path
from mlx_dpo.runs.guards import LOCK, locked
run = Path(sys.argv[1])
with locked(run):
    lock = (run / LOCK).stat()
    open_files = [n for n in range(3, 64) if os.path.exists(f"/dev/fd/{n}")]
    inherited = [n for n in open_files if os.path.samestat(os.fstat(n), lock)]
    os.write(1, b"held\\n")
    child = "import os, sys; os.write(1, b'held\\\\n'); sys.stdin.read()"
    subprocess.run([sys.executable, "-c", child], pass_fds=inherited)
"""


def test_a_second_run_is_refused_naming_the_first_which_a_kill_frees(tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    with holder.stdin, holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        named = rf"in use by process {holder.pid} on .*, since"
        with pytest.raises(LockedError, match=named):
            check_free(run)
        with pytest.raises(LockedError, match=named), locked(run):
            pass
        holder.kill()
        holder.wait()
    check_free(run)
    with locked(run):
        assert str(os.getpid()) in (run / HOLDER).read_text()


@contextmanager
def killed_while_it_forked(run: Path) -> Iterator[Callable[[], None]]:
    """A holder that was killed, of which a child is left; yields what ends that one too."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_WITH_A_CHILD, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    with holder.stdout as out, holder.stdin as in_:
        assert [out.readline(), out.readline()] == [b"held\n"] * 2
        holder.kill()
        holder.wait()

        def end_child() -> None:
            in_.close()
            out.read()  # ends when the child does

        yield end_child


def hold(run: Path) -> None:
    with locked(run):
        pass


@pytest.mark.parametrize("take", [check_free, hold])
def test_a_killed_holder_that_left_its_lock_to_a_child_for_a_moment_is_waited_for(
    tmp_path: Path, take: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_while_it_forked(tmp_path) as end_child:
        monkeypatch.setattr(guards, "PATIENCE", 60)
        thread = threading.Thread(target=end_child)
        thread.start()
        take(tmp_path)
        thread.join()


def test_it_is_not_waited_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "PATIENCE", 0)
    with killed_while_it_forked(tmp_path), pytest.raises(LockedError, match="in use by process"):
        check_free(tmp_path)


@pytest.mark.parametrize("name", ["", "7", '{"pid": 1e99}', '{"pid": "x", "host": 3}', "\xff"])
def test_a_lock_without_a_name_is_held_by_another_process(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "PATIENCE", 0)
    with locked(tmp_path):
        (tmp_path / HOLDER).write_text(name)
        with pytest.raises(LockedError, match="in use by another process"):
            check_free(tmp_path)


def test_a_folder_into_which_nothing_came_is_gone_afterwards(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_in_an_empty_folder_or_of_the_folders_made_above_a_new_one(
    tmp_path: Path,
) -> None:
    with locked(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_held_a_folder_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    with locked(tmp_path):
        assert (tmp_path / HOLDER).read_text()
    assert not (tmp_path / HOLDER).exists()


def test_a_folder_that_vanishes_under_its_holder_hides_no_error_of_the_block(
    tmp_path: Path,
) -> None:
    def fail() -> None:
        shutil.rmtree(tmp_path / "run")
        raise DiskError("the disk is full")

    with pytest.raises(DiskError, match="full"), locked(tmp_path / "run"):
        fail()


def test_a_volume_without_locks_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(DiskError, match="this volume has no locks; put --run-dir on the internal"):
        hold(tmp_path / "run")


class AfterStep(Screen):
    """Does something to the run's folder once a step is done."""

    def __init__(self, step: int, act: Callable[[Path], object]) -> None:
        self.step, self.act = step, act

    def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
        if step == self.step:
            self.act(Path("run"))


def test_a_deleted_lock_is_taken_again_before_the_next_save(workplace: Path) -> None:
    def delete(run: Path) -> None:
        (run / LOCK).unlink()

    holders = []

    class Watching(AfterStep):
        def evaluated(self, step: int, metrics: Metrics) -> None:
            if step > self.step + 1:  # the save after step 3 comes after its evaluation
                with pytest.raises(LockedError, match="in use by process"):
                    check_free(Path("run"))
                holders.append(step)

    train(settings(run_dir="run", save_every=2), screen=Watching(2, delete))
    assert holders


def test_a_lock_that_another_run_took_meanwhile_ends_this_one_unsaved(workplace: Path) -> None:
    def replace(run: Path) -> None:
        (run / LOCK).unlink()
        descriptor = os.open(run / LOCK, os.O_CREAT | os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    with pytest.raises(LockedError):
        train(settings(run_dir="run", save_every=3), screen=AfterStep(4, replace))
    assert sorted(path.name for path in Path("run").glob("step-*")) == ["step-000003"]


def test_a_folder_that_is_removed_while_it_trains_is_named(workplace: Path) -> None:
    with pytest.raises(DiskError, match=r"run.*(removed or renamed|not written)"):
        train(settings(run_dir="run", save_every=3), screen=AfterStep(1, shutil.rmtree))
