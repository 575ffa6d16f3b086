"""Disks that fail at the n-th call: killed, without power, or full."""

import errno
import io
import os
import signal
from pathlib import Path

from mlx_dpo.files import Disk

MODES = ("kill", "power", "full")


class FailingDisk(Disk):
    """A disk that works until the n-th call, counted from 1.

    Args:
        at: The call that fails.
        mode: ``kill`` ends this process by SIGKILL, half of a write done. ``power`` does the same,
            and what was not flushed is lost: bytes of files, and names of folders. ``full`` makes
            that write and all later ones fail for want of room; other calls go on.
    """

    def __init__(self, at: int, mode: str) -> None:
        self.at, self.mode = at, mode
        self.calls = 0
        self._bytes_lost: set[str] = set()  # files written and not flushed
        self._renamed: list[tuple[Path, Path, bytes | None]] = []  # and not flushed

    def write(self, file: io.FileIO, data: memoryview) -> int:
        if self.mode == "full":
            self.calls += 1
            if self.calls >= self.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(file, data)
        self._bytes_lost.add(str(file.name))
        self._count(lambda: super(FailingDisk, self).write(file, data[: len(data) // 2]))
        return super().write(file, data)

    def flush(self, descriptor: int) -> None:
        self._count()
        super().flush(descriptor)
        there = os.fstat(descriptor)
        self._bytes_lost = {
            name
            for name in self._bytes_lost
            if os.path.exists(name) and not os.path.samestat(os.stat(name), there)
        }

    def flush_folder(self, folder: Path) -> None:
        self._count()
        super().flush_folder(folder)
        self._renamed = [entry for entry in self._renamed if entry[1].parent != folder]

    def rename(self, old: Path, new: Path) -> None:
        self._count()
        before = new.read_bytes() if new.is_file() else None
        super().rename(old, new)
        self._renamed.append((old, new, before))
        self._bytes_lost = {
            str(new) + name.removeprefix(str(old)) if name.startswith(str(old)) else name
            for name in self._bytes_lost
        }

    def remove(self, folder: Path) -> None:
        if folder.exists():
            self._count(lambda: next(folder.iterdir()).unlink())
        super().remove(folder)

    def _count(self, half: object = None) -> None:
        if self.mode == "full":
            return
        self.calls += 1
        if self.calls == self.at:
            if callable(half):
                half()
            if self.mode == "power":
                self._lose_power()
            os.kill(os.getpid(), signal.SIGKILL)

    def _lose_power(self) -> None:
        for name in self._bytes_lost:
            if os.path.exists(name):
                os.truncate(name, 0)
        for old, new, before in reversed(self._renamed):
            if new.exists():
                new.rename(old)
            if before is not None:
                new.write_bytes(before)
