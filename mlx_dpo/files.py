"""Files that are whole or not there: written under a temporary name, flushed, renamed.

A temporary name has a random token, and its writer holds a lock, which the kernel frees the moment
that the writer ends. Process numbers tell nothing: in another container or on another machine the
same number is another process. Writes, flushes, renames and removals of what a run
leaves go through `disk`: tests put another `Disk` there, that fails or ends the process at the n-th
call.
"""

import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from mlx_dpo.errors import TakenError, disk_error

# What a volume answers to a call that it does not know.
_UNSUPPORTED = (errno.ENOTSUP, errno.ENOTTY, errno.EINVAL)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)  # of a rename onto a folder
# As `_unnamed` names them; earlier versions had the process number in place of the token, and no
# locks.
_LEFTOVER = re.compile(r"\.(.+)\.(?:([0-9a-f]{12})\.(?:tmp|old|lock)|\d{1,10}\.(?:tmp|old))")
_DAY = 24 * 3600.0  # seconds; what nothing has a lock of is left by a dead writer then


class Disk:
    """The operating system's disk."""

    def write(self, file: io.FileIO, data: memoryview) -> int:
        """Write some of `data`; how many bytes."""
        return file.write(data)

    def flush(self, descriptor: int) -> None:
        """Wait until the disk has a file."""
        if sys.platform == "darwin":
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
        DiskError: If it can't be written, or is there and may not be replaced (`TakenError`); what
            was there stays as it was.
    """
    try:
        remove_abandoned(path.parent, path.name)
        with _held(path, "tmp") as temporary:
            with NewFile(temporary) as file:
                yield cast("BinaryIO", file)
                file.flush_to_disk()
            if path.exists() and not replace:
                raise _taken(path)
            disk.rename(temporary, path)
            disk.flush_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from None


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
            _delete(entry)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Delete what writers that were killed left half done in a folder others may write to now.

    What was moved aside to be replaced stays until something has its name. What can't be deleted
    only takes room, and stays. Where a volume has no locks, and with names of earlier versions, a
    writer counts as killed when nothing has changed for a day.

    Args:
        folder: The folder; nothing happens where there is none.
        name: Of the file or folder that they wrote; None for all of them.
    """
    with suppress(OSError):
        for entry in folder.iterdir():
            match = _LEFTOVER.fullmatch(entry.name)
            if not match or name not in (None, match[1]):
                continue
            # A writer killed between the two renames of a replacement leaves the only copy aside.
            if entry.suffix != ".old" or (folder / match[1]).exists():
                _remove_if_abandoned(entry, has_lock=match[2] is not None)


def _remove_if_abandoned(entry: Path, *, has_lock: bool) -> None:
    lock = entry.with_suffix(".lock") if entry.is_dir() else entry  # see `_held`, `_held_folder`
    is_free: bool | None = None
    with suppress(OSError), ExitStack() as stack:  # held until it is deleted
        if has_lock:
            try:
                is_free = _lock(stack.enter_context(lock.open("rb+", buffering=0)))
            except FileNotFoundError:
                is_free = True  # it is made first of all, and deleted last
            except OSError:  # another user's
                pass
        if is_free or (is_free is None and _is_old(entry)):
            _delete(entry)


def _lock(file: io.FileIO) -> bool | None:
    """Lock a file until it is closed; False where another holds it, None where no lock can be."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # SMB, for one
        return None
    return True


def _is_old(entry: Path) -> bool:
    parts = [entry.with_suffix(suffix) for suffix in (".tmp", ".old", ".lock")]
    changed = max((part.stat().st_mtime for part in parts if part.exists()), default=0.0)
    return changed < time.time() - _DAY


def _delete(entry: Path) -> None:
    disk.remove(entry) if entry.is_dir() else entry.unlink(missing_ok=True)


def mark_used(entry: Path) -> None:
    """Set a cache entry's time to now: what nothing uses for long is deleted."""
    with suppress(OSError):  # one that may not be written to is read all the same
        os.utime(entry)


def remove_folder(folder: Path) -> None:
    """Delete a folder that is whole until it is gone: it loses its name first."""
    nameless = _unnamed(folder, "tmp")  # without a lock: whoever comes by may delete it
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
    # Under a name that it will have until it is whole: the next command removes it where this one
    # is killed.
    try:
        with _held_folder(path):
            pass
    except OSError as error:
        raise disk_error(path, error, "cannot be written") from None


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name; it appears as `path` when the block ends well.

    Args:
        path: The folder to come.
        replace: Whether a folder that is there by then is replaced.

    Raises:
        DiskError: If it can't be written, or is there and may not be replaced (`TakenError`); what
            was there stays as it was.
    """
    try:
        with _held_folder(path) as temporary:
            yield temporary
            for entry in sorted(temporary.rglob("*")):
                if entry.is_dir():
                    disk.flush_folder(entry)
                else:
                    flush_file(entry)
            disk.flush_folder(temporary)
            if path.exists() and not replace:
                raise _taken(path)
            _put_in_place(temporary, path, replace=replace)
        remove_abandoned(path.parent, path.name)  # what a killed writer had moved aside
    except OSError as error:
        raise disk_error(path, error) from None


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, on the same disk, which is deleted when the block ends."""
    try:
        with _held_folder(path.with_name(f"{path.name}.scratch")) as scratch:
            yield scratch
    except OSError as error:
        raise disk_error(path, error) from None


@contextmanager
def _held(path: Path, suffix: str) -> Iterator[Path]:
    """An empty file beside `path`, locked while the block runs, and deleted if it is left there."""
    while True:
        file = _unnamed(path, suffix)
        with file.open("xb", buffering=0) as held:
            # Somebody may take it for abandoned, in the moment before it is locked.
            if _lock(held) is False or not os.fstat(held.fileno()).st_nlink:
                continue
            try:
                yield file
            finally:
                with suppress(OSError):
                    file.unlink(missing_ok=True)
            return


@contextmanager
def _held_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: what is locked is a file beside it, which the folder's name tells.

    A folder can be locked itself, but over NFS such a lock is unknown to other machines.
    """
    remove_abandoned(path.parent, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(path, "lock") as lock:
        folder = lock.with_suffix(".tmp")
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _unnamed(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.{suffix}")


def _taken(path: Path) -> TakenError:
    return TakenError(f"{path}: appeared in the meantime, and is left as it is")


def _put_in_place(temporary: Path, path: Path, *, replace: bool) -> None:
    old = temporary.with_suffix(".old")
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
            if not replace and isinstance(error, OSError) and error.errno in _TAKEN:
                raise _taken(path) from None
            raise
    disk.flush_folder(path.parent)
    disk.remove(old)
