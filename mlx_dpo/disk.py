"""Every call by which this project changes a disk, in one place.

Tests put another `Disk` there, that fails or ends the process at the n-th call.
"""

import hashlib
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any


class Disk:
    """The operating system's disk."""

    def write(self, file: io.FileIO, data: memoryview) -> int:
        """Write some of `data`; how many bytes."""
        return file.write(data)

    def flush(self, descriptor: int) -> None:
        """Bring a file to the platter."""
        if sys.platform == "darwin":
            import fcntl

            # fsync on macOS leaves the bytes in the drive's cache.
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)

    def flush_folder(self, folder: Path) -> None:
        """Bring a folder's names to the platter."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
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
        path: The file; emptied if it is there.
        append: Whether to keep what it holds.
    """

    def __init__(self, path: Path, *, append: bool = False) -> None:
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
        """Wait until it is on the platter."""
        disk.flush(self._file.fileno())

    def close(self) -> None:
        """Close it; nothing is buffered."""
        self._file.close()
        super().close()

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._digest.hexdigest()
