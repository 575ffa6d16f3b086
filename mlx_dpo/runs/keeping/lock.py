"""One run per folder: a lock of the kernel's, free again the moment its holder ends, however."""

import fcntl
import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from mlx_dpo.errors import DiskError, LockedError

NAME = ".lock"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run's folder; what is made of it here goes again if nothing came into it.

    Raises:
        LockedError: At once, if another process holds it; the message names it.
        DiskError: If the folder or the lock can't be made.
    """
    new = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = _take(run)
    except OSError as error:
        raise DiskError(f"{run}: cannot be locked: {error.strerror or error}") from None
    try:
        yield
    finally:
        if {entry.name for entry in run.iterdir()} == {NAME}:
            (run / NAME).unlink(missing_ok=True)
            with suppress(OSError):  # somebody came in
                for folder in new:
                    folder.rmdir()
        else:
            file.truncate(0)  # host and process are nobody's business afterwards
        file.close()


def check_free(run: Path) -> None:
    """Find out at once, before anything heavy is imported, whether a run's folder is held.

    Raises:
        LockedError: If it is.
    """
    with suppress(OSError), (run / NAME).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _held(run) from None


def _take(run: Path) -> io.FileIO:
    while True:
        file = (run / NAME).open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_there(file, run / NAME):
                break
        except BlockingIOError:
            file.close()
            raise _held(run) from None
        file.close()  # its holder deleted it between our two calls
    file.truncate(0)
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}
    file.write(json.dumps(holder).encode())
    return file


def _is_still_there(file: io.FileIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _held(run: Path) -> LockedError:
    who = "another process"
    with suppress(OSError, ValueError, KeyError, TypeError):  # it may be writing its name just now
        holder = json.loads((run / NAME).read_bytes())
        who = f"process {holder['pid']} on {holder['host']}, since {holder['started']}"
    return LockedError(f"{run}: in use by {who}; wait for it, or choose another --run-dir")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
