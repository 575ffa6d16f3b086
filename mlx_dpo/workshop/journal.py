"""An append-only file of JSON objects, each on the disk before the caller goes on."""

import fcntl
import json
from pathlib import Path
from threading import Lock
from typing import Any

from mlx_dpo.errors import DataError, DiskError, LockedError, disk_error
from mlx_dpo.files import append, check_ordinary, cut_torn_line, make_folder
from mlx_dpo.preferences.reader import json_line


class Journal:
    """Entries of this and of earlier sessions. One process at a time can have it open.

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
        self._writing = Lock()
        check_ordinary(path)
        make_folder(path.parent)
        try:
            self._locked = path.open("ab")
        except OSError as error:
            raise disk_error(path, error) from None
        try:
            fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            cut_torn_line(path)
            self.entries = _read(path)
        except BlockingIOError:
            self.close()
            raise LockedError(f"{path}: in use by another mlx_dpo; end that one first") from None
        except BaseException:
            self.close()
            raise

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry and wait until the disk has it. May be called from several threads.

        Raises:
            DiskError: If it can't be written; the journal is then unchanged.
        """
        with self._writing:
            try:
                append(self.path, json_line(entry))
            except DiskError:
                cut_torn_line(self.path)
                raise
            self.entries.append(entry)

    def close(self) -> None:
        """Release the lock."""
        self._locked.close()


def _read(path: Path) -> list[dict[str, Any]]:
    entries = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise DataError(f"{path}:{number}: not a line of this journal; mend or remove it")
            entries.append(entry)
    return entries
