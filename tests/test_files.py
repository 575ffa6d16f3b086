"""Files that are whole or not there."""

import errno
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from mlx_dpo import files
from mlx_dpo.errors import DiskError
from mlx_dpo.files import append, check_writable, new_file, new_folder, remove_abandoned


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
    monkeypatch.setitem(
        __import__("sys").modules, "fcntl", SimpleNamespace(fcntl=refuse, F_FULLFSYNC=51)
    )
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


def test_a_folder_moved_aside_by_a_writer_that_was_killed_stays_until_it_is_replaced(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    aside = tmp_path / f".model.{process.pid}.old"
    aside.mkdir()
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


@pytest.mark.parametrize("write", [new_file, new_folder])
def test_a_writer_first_removes_what_dead_writers_of_the_same_name_left(
    tmp_path: Path, write: Callable[..., AbstractContextManager[Any]]
) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    (tmp_path / f".model.{process.pid}.tmp").write_text("half")
    living = tmp_path / f".model.{os.getppid()}.tmp"
    other = tmp_path / f".other.{process.pid}.tmp"
    for kept in (living, other):
        kept.write_text("half")
    with write(tmp_path / "model"):
        names = {entry.name for entry in tmp_path.iterdir()}
        assert names == {living.name, other.name, f".model.{os.getpid()}.tmp"}


@pytest.mark.parametrize("write", [new_file, new_folder])
def test_what_a_dead_process_with_our_number_left_is_in_nobodys_way(
    tmp_path: Path, write: Callable[..., AbstractContextManager[Any]]
) -> None:
    half = tmp_path / f".model.{os.getpid()}.tmp"  # in a container every process has one number
    half.mkdir()
    with write(tmp_path / "model"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_check_that_was_killed_leaves_what_the_next_one_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as killed:
        killed.setattr(Path, "rmdir", MagicMock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            check_writable(tmp_path / "model")
    assert len(list(tmp_path.iterdir())) == 1
    check_writable(tmp_path / "model")
    assert not list(tmp_path.iterdir())


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
