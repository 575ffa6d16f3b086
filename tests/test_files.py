"""Files that are whole or not there."""

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_dpo import files
from mlx_dpo.errors import DiskError
from mlx_dpo.files import append, check_writable, new_file, new_folder, remove_abandoned

TOKEN, TWO_DAYS = "0123456789ab", 2 * 24 * 3600

# A process that writes a file and a folder until its stdin closes or it is killed.
WRITER = """
import sys
from pathlib import Path
from mlx_dpo.files import new_file, new_folder

here = Path(sys.argv[1])
with new_file(here / "file") as file, new_folder(here / "folder") as folder:
    file.write(b"half")
    (folder / "weights").write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_writer(place: Path) -> Iterator["subprocess.Popen[str]"]:
    """While the block runs, another process writes `file` and `folder` in a folder."""
    command = [sys.executable, "-c", WRITER, str(place)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == "writing\n"
            yield process
        finally:
            process.kill()


def names(place: Path) -> set[str]:
    """What is in a folder, of temporary names what they are for."""
    found = (files._LEFTOVER.sub(r"\1 (half)", entry.name) for entry in place.iterdir())
    return set(found)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(ZeroDivisionError), new_file(path) as file:
        file.write(b"half" * (1 // 0))
    assert list(tmp_path.iterdir()) == []
    with new_file(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(DiskError, match="left as it is"), new_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"old"
    with new_file(path, replace=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="not written"):
        append(tmp_path / "no folder" / "file", "x")


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOTTY, errno.EINVAL, errno.EIO])
def test_a_volume_that_knows_no_full_flush_is_flushed_as_well_as_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """On macOS: SMB and NTFS answer ENOTSUP, others ENOTTY or EINVAL. EIO is a failing disk."""
    flushed: list[int] = []

    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    def fsync(descriptor: int) -> None:
        flushed.append(descriptor)
        if Path(f"/dev/fd/{descriptor}").is_dir():
            refuse()

    monkeypatch.setattr(files, "sys", SimpleNamespace(platform="darwin"))
    volume = SimpleNamespace(**{**vars(fcntl), "fcntl": refuse, "F_FULLFSYNC": 51})
    monkeypatch.setattr(files, "fcntl", volume)
    monkeypatch.setattr(os, "fsync", fsync)
    if code == errno.EIO:
        with pytest.raises(DiskError, match="Input/output error"), new_file(tmp_path / "a"):
            pass
        assert not flushed
        return
    with new_file(tmp_path / "a") as file:
        file.write(b"one")
    with new_folder(tmp_path / "b") as folder:
        (folder / "c").write_bytes(b"two")
    assert flushed
    assert (tmp_path / "a").read_bytes() + (tmp_path / "b/c").read_bytes() == b"onetwo"


def test_a_replacement_that_fails_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(files.Disk):
        def rename(self, old: Path, new: Path) -> None:
            if old.suffix == ".tmp":
                raise OSError(errno.EIO, "Input/output error")
            super().rename(old, new)

    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("the only copy")
    monkeypatch.setattr(files, "disk", Failing())
    model = tmp_path / "model"
    with pytest.raises(DiskError, match="not written"), new_folder(model, replace=True):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/weights").read_text() == "the only copy"


@pytest.mark.parametrize("token", [TOKEN, "4321"])
def test_a_folder_moved_aside_by_a_writer_that_was_killed_stays_until_it_is_replaced(
    tmp_path: Path, token: str
) -> None:
    aside = tmp_path / f".model.{token}.old"
    aside.mkdir()
    os.utime(aside, (0, 0))
    remove_abandoned(tmp_path, "model")
    assert aside.is_dir()
    (tmp_path / "model").mkdir()
    remove_abandoned(tmp_path, "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_name_whose_temporary_form_is_too_long_is_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="cannot be written: File name too long"):
        check_writable(tmp_path / ("a" * 250))
    with pytest.raises(DiskError, match="not written"), new_file(tmp_path / ("a" * 250)):
        pass


def test_what_a_living_process_writes_is_left_to_it_and_what_a_killed_one_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*arguments: object) -> None:  # as of a process in another container
        raise ProcessLookupError

    with another_writer(tmp_path) as process:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(os, "kill", nobody)
            elsewhere.setattr(os, "getpid", lambda: process.pid)
            remove_abandoned(tmp_path)
            for name in ("file", "folder"):
                with new_file(tmp_path / name):
                    pass
                (tmp_path / name).unlink()
        check_writable(tmp_path / "folder")
        assert names(tmp_path) == {"file (half)", "folder (half)"}
        assert [f.read_bytes() for f in tmp_path.rglob("weights")] == [b"half"]
        process.kill()
        process.wait()
        with new_file(tmp_path / "file"):
            assert names(tmp_path) == {"file (half)", "folder (half)"}
        assert names(tmp_path) == {"file", "folder (half)"}
        check_writable(tmp_path / "folder")
        assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("write", [new_file, new_folder])
def test_two_writers_of_one_name_at_once_both_write_their_own(
    tmp_path: Path, write: Callable[..., AbstractContextManager[Any]]
) -> None:
    open_before = len(os.listdir("/dev/fd"))
    with write(tmp_path / "model", replace=True), write(tmp_path / "model", replace=True):
        pass
    with pytest.raises(DiskError, match="left as it is"), write(tmp_path / "model"):
        pass
    assert names(tmp_path) == {"model"}
    assert len(os.listdir("/dev/fd")) == open_before


@pytest.mark.parametrize("write", [new_file, new_folder])
def test_a_temporary_name_that_is_taken_for_abandoned_before_it_is_locked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Any]
) -> None:
    real, calls = files._lock, list[int]()

    def late(file: Any) -> bool | None:
        calls.append(1)
        if len(calls) == 1:
            remove_abandoned(tmp_path)  # of another process, in the moment before
        return real(file)

    monkeypatch.setattr(files, "_lock", late)
    with write(tmp_path / "model"):
        assert names(tmp_path) == {"model (half)"}
    assert names(tmp_path) == {"model"}
    assert len(calls) > 2


def test_without_locks_and_of_earlier_versions_only_what_is_a_day_old_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    volume = SimpleNamespace(**{**vars(fcntl), "flock": refuse})
    monkeypatch.setattr(files, "fcntl", volume)
    (tmp_path / f".a.{TOKEN}.tmp").write_text("half")
    (tmp_path / f".b.{TOKEN}.tmp").mkdir()
    (tmp_path / f".b.{TOKEN}.lock").touch()
    (tmp_path / f".c.{os.getpid()}.tmp").mkdir()
    (tmp_path / ".d.999999999.tmp").write_text("half")
    before = {entry.name for entry in tmp_path.iterdir()}
    os.utime(tmp_path / f".b.{TOKEN}.tmp", (0, 0))  # nothing new in it, but begun just now
    with new_folder(tmp_path / "model"), new_file(tmp_path / "c"):
        remove_abandoned(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {*before, "model", "c"}
    then = time.time() - TWO_DAYS
    for name in before:
        os.utime(tmp_path / name, (then, then))
    remove_abandoned(tmp_path)
    assert names(tmp_path) == {"model", "c"}


def test_of_two_writers_that_replace_a_folder_at_once_the_last_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"

    class Racing(files.Disk):
        raced = False

        def rename(self, old: Path, new: Path) -> None:
            if new == model and not self.raced:
                self.raced = True
                model.mkdir()  # another writer's, in the moment between two renames
                (model / "weights").write_text("theirs")
            super().rename(old, new)

    model.mkdir()
    monkeypatch.setattr(files, "disk", Racing())
    with new_folder(model, replace=True) as folder:
        (folder / "weights").write_text("ours")
    assert (model / "weights").read_text() == "ours"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
