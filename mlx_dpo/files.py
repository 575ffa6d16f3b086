"""Files that are whole or not there: written under a temporary name, flushed, renamed.

Writes, flushes, renames and removals of what a run
leaves go through `disk`: tests put another `Disk` there, that fails or ends the process at the n-th
call.
"""

import errno
import hashlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from mlx_dpo.errors import DiskError, disk_error

# What a volume answers to a call that it does not know.
_UNSUPPORTED = (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)  # of a rename onto a folder
_LEFTOVER = re.compile(r"\.(.+)\.(\d+)\.(?:tmp|old)")  # as `_unnamed` names them


class Disk:
    """The operating system's disk."""

    def write(self, file: io.FileIO, data: memoryview) -> int:
        """Write some of `data`; how many bytes."""
        return file.write(data)

    def flush(self, descriptor: int) -> None:
        """Wait until the disk has a file."""
        if sys.platform == "darwin":
            import fcntl

            try:
                # fsync on macOS leaves the bytes in the drive's cache.
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
                return
            except OSError as error:  # network and foreign volumes know no such call
                if error.errno not in _UNSUPPORTED:
                    raise
        os.fsync(descriptor)

    def flush_folder(self, folder: Path) -> None:
        """Wait until the disk has a folder's names."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:  # on such a volume, a folder has nothing to flush
            if error.errno not in _UNSUPPORTED:
                raise
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Move a file or folder; a file that was there is replaced."""
        old.replace(new)

    def remove(self, folder: Path) -> None:
        """Delete a folder, or what can be deleted of it."""
        shutil.rmtree(folder, ignore_errors=True)


disk = Disk()


class NewFile(io.RawIOBase):
    """A file being written, with the size and digest of what was written so far.

    Args:
        path: The file, its `name`; emptied if it is there.
        append: Whether to keep what it holds.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self.name = os.fspath(path)
        self._file: io.FileIO = path.open("ab" if append else "wb", buffering=0)
        self._digest = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Write all of `data`, which is any buffer of bytes."""
        whole = memoryview(data).cast("B")
        done = 0
        while done < len(whole):  # the system may write less than it is given
            done += disk.write(self._file, whole[done:])
        self._digest.update(whole)
        self.size += len(whole)
        return len(whole)

    def flush_to_disk(self) -> None:
        """Wait until the disk has it."""
        disk.flush(self._file.fileno())

    def close(self) -> None:
        """Close it; nothing is buffered."""
        self._file.close()
        super().close()

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._digest.hexdigest()


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file at once.

    Raises:
        DiskError: If it can't be written; a file that was there is untouched.
    """
    with new_file(path, replace=True) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def new_file(path: Path, *, replace: bool = False) -> Iterator[BinaryIO]:
    """Fill a file under a temporary name; it appears as `path` when the block ends well.

    For what is too large to be held in memory; `write_file` for the rest.

    Args:
        path: The file to come.
        replace: Whether a file that is there by then is replaced.

    Raises:
        DiskError: If it can't be written, or is there and may not be replaced; what was there
            stays as it was.
    """
    temporary = _temporary(path)
    try:
        remove_abandoned(path.parent, path.name)
        with NewFile(temporary) as file:
            yield cast("BinaryIO", file)
            file.flush_to_disk()
        if path.exists() and not replace:
            raise DiskError(f"{path}: appeared in the meantime, and is left as it is")
        disk.rename(temporary, path)
        disk.flush_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from None
    finally:
        with suppress(OSError):  # a name that is too long can't even be looked for
            temporary.unlink(missing_ok=True)


def append(path: Path, text: str) -> None:
    """Add text to a file (made where it is not there); `flush_file` waits for the disk.

    Args:
        path: The file.
        text: What to add; a process that is killed may leave half of it.

    Raises:
        DiskError: If it can't be written.
    """
    try:
        with NewFile(path, append=True) as file:
            file.write(text.encode())
    except OSError as error:
        raise disk_error(path, error) from None


def flush_file(path: Path) -> None:
    """Wait until the disk has all of a file.

    Raises:
        DiskError: If it can't be.
    """
    try:
        with path.open("rb") as file:
            disk.flush(file.fileno())
    except OSError as error:
        raise disk_error(path, error) from None


def is_leftover(name: str) -> bool:
    """Whether a writer of this project gave this name to what was not whole yet."""
    return _LEFTOVER.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left half done in a folder that no process writes to now."""
    for entry in folder.iterdir():
        if is_leftover(entry.name):
            if entry.is_dir():
                disk.remove(entry)
            else:
                entry.unlink(missing_ok=True)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete what writers that were killed left half done in a folder others may write to now.

    What was moved aside to be replaced stays until something has its name. What can't be deleted
    only takes room, and stays. Not to be called by a process that is writing what has this name.

    Args:
        folder: The folder; nothing happens where there is none.
        name: Of the file or folder that they wrote; None for all of them.
    """
    with suppress(OSError):
        for entry in folder.iterdir():
            match = _LEFTOVER.fullmatch(entry.name)
            if not match or name not in (None, match[1]) or _is_another(int(match[2])):
                continue
            # A writer killed between the two renames of a replacement leaves the only copy aside.
            if entry.suffix == ".tmp" or (folder / match[1]).exists():
                disk.remove(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def mark_used(entry: Path) -> None:
    """Set a cache entry's time to now: what nothing uses for long is deleted."""
    with suppress(OSError):  # one that may not be written to is read all the same
        os.utime(entry)


def _is_another(process: int) -> bool:
    """Whether a process lives and is not this one.

    What has this one's number was left by a dead one: in a container all have the same.
    """
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def remove_folder(folder: Path) -> None:
    """Delete a folder that is whole until it is gone: it loses its name first."""
    nameless = _unnamed(folder, "tmp")  # not "old": `remove_abandoned` keeps that
    disk.rename(folder, nameless)
    disk.remove(nameless)


def make_folder(path: Path) -> None:
    """Make a folder and its parents where they are not there yet.

    Raises:
        DiskError: If it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error, "cannot be made") from None


def check_writable(path: Path) -> None:
    """Find out now whether `path` can be made later.

    Raises:
        DiskError: If it can't.
    """
    make_folder(path.parent)
    # Under the name that it will have until it is whole: the next command removes it where this one
    # is killed.
    trial = _temporary(path)
    remove_abandoned(path.parent, path.name)
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise disk_error(path, error, "cannot be written") from None


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name; it appears as `path` when the block ends well.

    Args:
        path: The folder to come.
        replace: Whether a folder that is there by then is replaced.

    Raises:
        DiskError: If it can't be written, or is there and may not be replaced; what was there
            stays as it was.
    """
    temporary = _temporary(path)
    try:
        remove_abandoned(path.parent, path.name)
        temporary.mkdir(parents=True)
        yield temporary
        for entry in sorted(temporary.rglob("*")):
            if entry.is_dir():
                disk.flush_folder(entry)
            else:
                flush_file(entry)
        disk.flush_folder(temporary)
        if path.exists() and not replace:
            raise DiskError(f"{path}: appeared in the meantime, and is left as it is")
        _put_in_place(temporary, path, replace=replace)
        remove_abandoned(path.parent, path.name)  # what a killed writer had moved aside
    except OSError as error:
        raise disk_error(path, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, on the same disk, which is deleted when the block ends."""
    scratch = _temporary(path.with_name(f"{path.name}.scratch"))
    try:
        remove_abandoned(path.parent, f"{path.name}.scratch")
        scratch.mkdir(parents=True)
        yield scratch
    except OSError as error:
        raise disk_error(path, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return _unnamed(path, "tmp")


def _unnamed(path: Path, suffix: str) -> Path:
    # With the process id: two processes that write the same file must not share it.
    return path.with_name(f".{path.name}.{os.getpid()}.{suffix}")


def _put_in_place(temporary: Path, path: Path, *, replace: bool) -> None:
    old = _unnamed(path, "old")
    while True:
        if replace and path.exists():
            with suppress(FileNotFoundError):  # another writer has just moved it aside
                disk.rename(path, old)
        try:
            disk.rename(temporary, path)
            break
        except BaseException as error:
            if replace and isinstance(error, OSError) and error.errno in _TAKEN:
                disk.remove(old)  # another writer has put its own there meanwhile
                continue
            if old.exists():
                disk.rename(old, path)
            raise
    disk.flush_folder(path.parent)
    disk.remove(old)
