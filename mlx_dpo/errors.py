"""Errors a user can meet, each with the exit code the command line ends with.

A message is one line: what is wrong, where, and what to do. Nothing else reaches the screen.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class MlxDpoError(Exception):
    """A run failed for a reason that can be named. The base of all errors below."""

    exit_code = 1


class UsageError(MlxDpoError):
    """An option, a config file or a model folder is not as it must be."""

    exit_code = 2


class DataError(MlxDpoError):
    """A preference file or a pair in it can't be used."""

    exit_code = 3


class MemoryShortError(MlxDpoError):
    """Memory ran out; what was saved before is whole."""

    exit_code = 4


class BudgetError(MlxDpoError):
    """No settings that may be chosen for the user keep a run within its memory budget."""

    exit_code = 4


class NonFiniteError(MlxDpoError):
    """A loss or gradient was NaN or infinite.

    Attributes:
        applied: Whether the update had been made: weights and optimizer state are spoilt then.
    """

    exit_code = 5
    applied = False


class LockedError(MlxDpoError):
    """A run's folder is in use by another process."""

    exit_code = 6


class DiskError(MlxDpoError):
    """A file could not be written; what was there before is untouched."""

    exit_code = 7


class DeviceFaultError(MlxDpoError):
    """The GPU failed in the middle of a computation; what was saved before is whole."""

    exit_code = 8


_DISK_ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room: your share of this disk is used up",
    errno.EROFS: "the volume is read-only: choose a folder on another one",
    errno.EIO: "the disk reports errors: check its cable, then the disk",
    errno.ENXIO: "the disk is gone: connect it again",
    errno.ENODEV: "the disk is gone: connect it again",
    errno.ESTALE: "the network volume is gone: connect it again",
    errno.ENOENT: "its folder was removed or renamed meanwhile",
    errno.EACCES: "you may not write there: choose another folder",
    errno.EPERM: "you may not write there: choose another folder",
    errno.EMFILE: "too many files are open: raise the limit with ulimit -n",
}


def disk_error(path: object, error: OSError, what: str = "not written") -> DiskError:
    """The error for a call of the system that failed, with what helps."""
    advice = _DISK_ADVICE.get(error.errno or 0)
    reason = error.strerror or str(error)
    return DiskError(f"{path}: {what}: {reason}{f'; {advice}' if advice else ''}")


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Writes to one file: an error of the system in the block is that file's.

    Raises:
        DiskError: If there is one.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from None


def is_disk_fault(error: BaseException) -> bool:
    """Whether a disk failed, and not what was asked of it: full, read-only, broken or gone."""
    faults = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENXIO, errno.ENODEV)
    return isinstance(error, OSError) and error.errno in (*faults, errno.ESTALE, errno.EMFILE)


class PeerError(MlxDpoError):
    """Another process of a run on several machines has failed or is lost.

    Args:
        message: What is known.
        exit_code: The other's, where it could tell.
    """

    exit_code = 9

    def __init__(self, message: str, exit_code: int = exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StoppedError(MlxDpoError):
    """A signal ended the run after its state was saved; it can be resumed."""

    exit_code = 75


# In MLX's message where the GPU did not finish its work: a command buffer of Metal, a CUDA stream.
_FAULTS = ("command buffer execution failed", "cuda error", "cudastreamsynchronize")
# What MLX and Metal say when memory has run out, in lower case.
_SHORTAGES = (
    "unable to allocate",  # [malloc], [malloc_or_wait]
    "[metal::malloc]",  # larger than a buffer may be, or too many of them
    "insufficient memory",  # a command buffer that failed
    "outofmemory",
    "bad_alloc",
)


def is_shortage(error: BaseException) -> bool:
    """Whether an error of Python or MLX says that memory has run out."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(mark in said for mark in _SHORTAGES)
    )


def one_line(error: BaseException) -> str:
    """An error's message on one line of at most 300 characters; its type where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def is_device_fault(error: BaseException) -> bool:
    """Whether an error of MLX says that the GPU failed, and not for want of memory.

    Arrays that were computed meanwhile may hold anything: nothing of this process is to be saved.
    """
    text = str(error).lower()
    is_fault = isinstance(error, RuntimeError) and any(mark in text for mark in _FAULTS)
    return is_fault and not is_shortage(error)


def device_fault(error: BaseException, *, trains: bool) -> DeviceFaultError:
    """The error to end with, whose message says what helps.

    Args:
        error: That of MLX.
        trains: Whether it ended a run that can be resumed.
    """
    advice = "an error of the driver or of MLX"
    text = str(error)
    if "Timeout" in text or "ImpactingInteractivity" in text or "Impacting Interactivity" in text:
        advice = (
            "macOS ends long GPU work while the display is on: let it sleep, or set "
            "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1"
        )
        advice += ", or lower --batch-size" if trains else ""
    way_out = "run the command again"
    if trains:
        way_out = (
            "the checkpoints are whole: resume with --resume, or train with --supervise, which "
            "starts again by itself"
        )
    return DeviceFaultError(f"the GPU failed ({' '.join(text.split())[:200]}): {advice}; {way_out}")
