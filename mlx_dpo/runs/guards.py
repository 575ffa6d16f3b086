"""One run per folder: a lock of the kernel's, free again the moment its holder ends, however."""

import fcntl
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from mlx_dpo.errors import DiskError, LockedError, StoppedError

NAME = ".lock"
# Seconds. A holder killed while it was starting a helper leaves that one its lock for an instant:
# a child has all of its parent's files until it begins its own program.
PATIENCE = 0.5
_wait = time.sleep


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run's folder; what is made of it here goes again if nothing came into it.

    Raises:
        LockedError: If another process holds it, at once; the message names it. One that is
            already dead is given `PATIENCE` seconds.
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
        _lock(file, fcntl.LOCK_SH, run)


def _take(run: Path) -> io.FileIO:
    while True:
        file = (run / NAME).open("ab", buffering=0)
        try:
            _lock(file, fcntl.LOCK_EX, run)
        except LockedError:
            file.close()
            raise
        if _is_still_there(file, run / NAME):
            break
        file.close()  # its holder deleted it between our two calls
    file.truncate(0)
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}
    file.write(json.dumps(holder).encode())
    return file


def _is_still_there(file: io.FileIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _lock(file: io.IOBase, how: int, run: Path) -> None:
    """Lock it, or raise LockedError."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file.fileno(), how | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(run)
            if not _is_dead(holder) or time.monotonic() > until:
                raise _held(run, holder) from None
        _wait(0.01)


def _holder(run: Path) -> dict[str, Any]:
    """Who wrote its name into the lock; empty where nobody did, or is about to."""
    with suppress(OSError, ValueError):
        found = json.loads((run / NAME).read_bytes())
        if isinstance(found, dict) and {"pid", "host", "started"} <= found.keys():
            return found
    return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether it certainly is: it was of this host, and no process has its number."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder["pid"], int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's; no number of a process
        return False
    return False


def _held(run: Path, holder: dict[str, Any]) -> LockedError:
    who = "process {pid} on {host}, since {started}" if holder else "another process"
    return LockedError(
        f"{run}: in use by {who.format(**holder)}; wait for it, or choose another --run-dir"
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# --- Ctrl-C and SIGTERM: when they end a run at once, and when something
# has to be saved first.


class Stop:
    """Whether a signal asked the run to end.

    Attributes:
        asked: A signal came.
        waits: There is something to save: a signal is noted, and looked at after the batch.
            Otherwise it ends the run where it is.
        message: What is lost then, and what to do.
    """

    asked = False
    waits = False
    message = "stopped before the first step; nothing is lost, start it again"

    def check(self) -> None:
        """Leave now, if a signal came.

        Raises:
            StoppedError: If it did.
        """
        if self.asked:
            raise StoppedError(self.message)


@contextmanager
def stop_on_signal(told: Callable[[], None] | None = None) -> Iterator[Stop]:
    """Let SIGINT and SIGTERM end what runs inside; a second one ends the process at once.

    At once means by the kernel: no Python code runs any more, not even in the middle of a long
    computation. What is on disk is whole at any moment.

    Args:
        told: Called from the handler when the first signal has to wait for a batch.

    Raises:
        StoppedError: If a signal came while there was nothing to save.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        for each in old:
            signal.signal(each, signal.SIG_DFL)
        if not stop.waits:
            raise KeyboardInterrupt
        if told is not None:
            told()

    try:
        for number in old:
            signal.signal(number, ask)
        yield stop
    except KeyboardInterrupt:
        stop.check()
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
