"""Append-only files: lines that are on the disk before the caller goes on.

A journal deleted, replaced or cut by another program while it is open is noticed before the next
entry counts. An entry that could not be written is taken back whole.
"""

import fcntl
import json
import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

from mlx_dpo import files
from mlx_dpo.errors import DataError, DiskError, LockedError, disk_error
from mlx_dpo.files import make_folder, write_file
from mlx_dpo.paths import check_ordinary
from mlx_dpo.preferences.reader import json_line


class LineFile:
    """A file that grows by whole lines. One process at a time can have it open.

    Args:
        path: The file; made if it is not there.

    Attributes:
        content: All whole lines, those of earlier sessions first.

    Raises:
        LockedError: If another process has it open.
        DiskError: If it can't be read or written.
        UsageError: If it is a pipe, a socket or a device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writing = Lock()
        self._kept: Path | None = None
        check_ordinary(path)
        make_folder(path.parent)
        try:
            is_new = not path.exists()
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise disk_error(self.path, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_new:
                files.disk.flush_folder(path.parent)
            found = self._read()
        except BlockingIOError:
            self.close()
            raise LockedError(f"{path}: in use by another mlx_dpo; end that one first") from None
        except OSError as error:
            self.close()
            raise disk_error(self.path, error) from None
        end = found.rfind(b"\n") + 1
        self.content = bytearray(found[:end])
        self._pending = found[end:]  # what may follow the content: of an attempt that failed
        self._seen: tuple[int, int] | None = None  # size and time when it last held the content

    def foreign_line(self, start: bytes) -> int | None:
        """Number of the first line that does not begin with `start`, as all of ours do.

        A last line without an end counts: what is not ours must not be cut away.
        """
        lines = bytes(self.content + self._pending).split(b"\n")
        numbers = (n for n, line in enumerate(lines, 1) if not line.startswith(start[: len(line)]))
        return next(numbers, None)

    def settle(self) -> None:
        """Cut away what a kill or a full disk left of a line behind the content.

        Raises:
            DiskError: If it can't be, or another program has changed the file.
        """
        with self._writing:
            try:
                self._settle()
            except OSError as error:
                raise disk_error(self.path, error) from None

    def append(self, text: str) -> None:
        """Add lines and wait until the disk has them. May be called from several threads.

        Raises:
            DiskError: If they can't be written, or another program has changed the file. The lines
                don't count then: they are cut away, now or before the next ones are added.
        """
        data = text.encode()
        with self._writing:
            try:
                self._settle()
                self._pending = data
                rest = memoryview(data)
                while rest:  # the system may write less than it is given
                    rest = rest[files.disk.write(self._file, rest) :]
                files.disk.flush(self._file.fileno())
                there = self._identified()
                if there.st_size != len(self.content) + len(data):
                    raise self._changed("was changed")
            except OSError as error:
                with suppress(OSError, DiskError):  # the next call tries again, or says why not
                    self._settle()
                raise disk_error(self.path, error) from None
            self.content += data
            self._pending = b""
            self._seen = there.st_size, there.st_mtime_ns

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def _settle(self) -> None:
        there = self._identified()
        if not self._pending and self._seen == (there.st_size, there.st_mtime_ns):
            return
        found, size = self._read(), len(self.content)
        if found[:size] != self.content or not self._pending.startswith(found[size:]):
            raise self._changed("was changed")
        if len(found) > size:
            self._file.truncate(size)
            files.disk.flush(self._file.fileno())
        there = os.fstat(self._file.fileno())
        self._pending, self._seen = b"", (there.st_size, there.st_mtime_ns)

    def _identified(self) -> os.stat_result:
        """The state of the file, if it still has its name."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            raise self._changed("was deleted") from None
        if not os.path.samestat(there, os.fstat(self._file.fileno())):
            raise self._changed("was replaced")
        return there

    def _read(self) -> bytes:
        self._file.seek(0)
        return self._file.readall()

    def _changed(self, what: str) -> DiskError:
        """The error that names the change, and a copy of what the file should hold."""
        if self._kept is None:
            names = (self.path.with_name(f"{self.path.name}.kept{n or ''}") for n in count())
            kept = next(name for name in names if not os.path.lexists(name))
            try:
                write_file(kept, bytes(self.content))
            except DiskError as error:
                return DiskError(f"{self.path}: {what} by another program meanwhile ({error})")
            self._kept = kept
        return DiskError(
            f"{self.path}: {what} by another program meanwhile; all that was saved before is in "
            f"{self._kept}: rename it to {self.path.name}, and start again"
        )


class Journal:
    """Entries of this and of earlier sessions: a file of JSON objects, one a line.

    Args:
        path: The file; made if it is not there. A last line that a kill cut off is removed.

    Attributes:
        entries: All entries, in order.

    Raises:
        LockedError: If another process has it open.
        DataError: If it holds anything but a JSON object a line.
        DiskError: If it can't be written.
        UsageError: If it is a pipe, a socket or a device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = LineFile(path)
        try:
            self.entries = self._parsed()
            self._lines.settle()
        except BaseException:
            self.close()
            raise

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry and wait until the disk has it. May be called from several threads.

        Raises:
            DiskError: As for `LineFile.append`; `entries` is then unchanged.
        """
        self._lines.append(json_line(entry))
        self.entries.append(entry)

    def close(self) -> None:
        """Release the lock."""
        self._lines.close()

    def _parsed(self) -> list[dict[str, Any]]:
        entries = list[Any]()
        foreign = self._lines.foreign_line(b'{"')
        try:
            for line in self._lines.content.split(b"\n")[:-1]:
                entries.append(json.loads(line))
        except (ValueError, RecursionError):
            foreign = len(entries) + 1
        if foreign is not None:
            where = f"{self.path}:{foreign}"
            raise DataError(f"{where}: not a line of this journal; correct or remove it")
        return entries
