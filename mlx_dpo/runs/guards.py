"""Guards of a run: one process a folder, and signals that wait until the state is saved."""

import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mlx_dpo.errors import DiskError, LockedError, StoppedError, disk_error
from mlx_dpo.paths import entries_of

if TYPE_CHECKING:
    from filelock import FileLock

LOCK = ".lock"  # held by the kernel: free the moment its holder ends, however that happens
HOLDER = ".lock.json"  # who holds it
# Seconds. A process killed while it starts a child leaves the lock to the child for an instant: a
# child has its parent's open files until it begins its own program.
PATIENCE = 0.5
_mine: "dict[Path, tuple[FileLock, int]]" = {}  # folders of this process, with the file's number


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lock a run's folder while the block runs; folders made for it are removed if left empty.

    Raises:
        LockedError: If another process holds it; the message names the process. For one that is
            already dead, after `PATIENCE` seconds.
        DiskError: If the folder or the lock can't be made.
    """
    new = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        _hold(run)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": _now()}
        (run / HOLDER).write_text(json.dumps(holder), encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):  # SMB, for one
            raise DiskError(
                f"{run}: this volume has no locks; put --run-dir on the internal disk"
            ) from None
        raise disk_error(run, error, "cannot be locked") from None
    try:
        yield
    finally:
        # Host and process number stay private. The folder may have vanished meanwhile.
        with suppress(OSError):
            (run / HOLDER).unlink(missing_ok=True)
            if [entry.name for entry in entries_of(run)] == [LOCK]:
                for file in run.iterdir():  # the lock, and what the system has strewn
                    file.unlink(missing_ok=True)
                for folder in new:
                    folder.rmdir()  # raises where another process has written into it
        with suppress(OSError):  # it would hide the error of the block
            _mine.pop(run)[0].release()


def forget_dead(run: Path) -> None:
    """Remove what a killed process left of its name in a folder that nobody holds any more.

    Raises:
        LockedError: If one holds it.
    """
    if (run / HOLDER).exists():
        with locked(run):
            pass


def keep_locked(run: Path) -> None:
    """Take the lock of a held folder again if somebody deleted it; called before saving.

    Without its file another run could begin in the same folder.

    Raises:
        LockedError: If another process holds it by now.
        DiskError: If the folder is gone.
    """
    if run not in _mine:
        return
    lock, number = _mine[run]
    with suppress(OSError):
        if (run / LOCK).stat().st_ino == number:
            return
    if not run.is_dir():
        raise DiskError(f"{run}: the folder was removed or renamed while the run used it")
    lock.release()
    _hold(run)


def _hold(run: Path) -> None:
    lock = _acquired(run)
    _mine[run] = (lock, (run / LOCK).stat().st_ino)


def check_free(run: Path) -> None:
    """Refuse a run's folder that is locked, before anything heavy is imported.

    Raises:
        LockedError: If it is.
    """
    if (run / LOCK).is_file():
        with suppress(OSError):
            _acquired(run).release()


def _acquired(run: Path) -> "FileLock":
    from filelock import FileLock, Timeout

    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _holder(run)
        if holder and not _is_dead(holder):
            raise _held(run, holder) from None
        try:
            lock.acquire(timeout=PATIENCE, poll_interval=0.01)
        except Timeout:
            raise _held(run, _holder(run)) from None
    return lock


def _holder(run: Path) -> dict[str, Any]:
    """What the process that holds the folder wrote about itself; empty if nothing."""
    with suppress(OSError, ValueError):
        holder = json.loads((run / HOLDER).read_bytes())
        if isinstance(holder, dict) and {"pid", "host", "started"} <= holder.keys():
            return holder
    return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder is certainly dead: of this host, and no process has its number."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder["pid"], int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's process; not a valid process id
        return False
    return False


def _held(run: Path, holder: dict[str, Any]) -> LockedError:
    who = "process {pid} on {host}, since {started}" if holder else "another process"
    return LockedError(
        f"{run}: in use by {who.format(**holder)}; wait for it, or choose another --run-dir"
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class Stop:
    """A request by signal to end the run.

    Attributes:
        requested: Whether a signal came.
        defer: If True a signal only sets `requested`; the loop sees it after the current batch and
            saves. If False (before training) it raises KeyboardInterrupt at once.
        message: Of the error: what is lost, and how to continue.
    """

    requested = False
    defer = False
    message = "stopped before a step was made: nothing is lost, begin again with the same command"

    def check(self) -> None:
        """Raise, if a signal came.

        Raises:
            StoppedError: If it did.
        """
        if self.requested:
            raise StoppedError(self.message)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """While the block runs, a signal waits until the current batch is done."""
        self.defer = True
        try:
            yield
        finally:
            self.defer = False


@contextmanager
def stop_on_signal(on_deferred: Callable[[], None] | None = None) -> Iterator[Stop]:
    """Let SIGINT, SIGTERM and a closed terminal stop the block; a second one ends it at once.

    At once means by the kernel, also in the middle of a long computation: no Python code runs any
    more. The files on disk are whole at any moment.

    Args:
        on_deferred: Called in the handler if the first signal has to wait for a batch.

    Raises:
        StoppedError: If a signal came before training.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if (hangup := signal.getsignal(signal.SIGHUP)) is not signal.SIG_IGN:  # as nohup sets it
        old[signal.SIGHUP] = hangup

    def handle(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        for other in old:
            signal.signal(other, signal.SIG_DFL)
        if not stop.defer:
            raise KeyboardInterrupt
        if on_deferred is not None:
            on_deferred()

    try:
        for number in old:
            signal.signal(number, handle)
        yield stop
    except KeyboardInterrupt:
        stop.check()
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
