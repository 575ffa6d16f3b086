"""One run per folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_dpo.errors import LockedError
from mlx_dpo.runs.keeping.lock import NAME, check_free, locked

HOLD = """
import sys
from pathlib import Path
from mlx_dpo.runs.keeping.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
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
        assert str(os.getpid()) in (run / NAME).read_text()


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
        assert (tmp_path / NAME).read_text()
    assert (tmp_path / NAME).read_text() == ""
