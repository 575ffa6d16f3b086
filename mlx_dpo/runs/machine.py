"""The machine a run is on: memory that gets short or runs out, and sleep.

A Mac does not refuse memory, it swaps: first everything becomes slow, then the system ends
programs. So `PressureWatch` warns, then stops the run while it can still be saved; it goes by the
kernel's own levels (not tried on a Mac). `shortage_explained` turns MLX's error into a line that
says which setting to change. `keep_awake` prevents sleep, and `StepClock` notices it.
"""

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from mlx_dpo.errors import MemoryShortError, StoppedError, is_shortage
from mlx_dpo.runs.config import RunConfig

EVERY = 15.0  # seconds between two checks of the memory
WARNING, CRITICAL = 2, 4  # the kernel's own levels of memory pressure; 1 is normal
MOST_SWAP = 4 * 2**30  # bytes swapped out since the run began: stop above
GAP = 10.0  # seconds by which the wall clock must run ahead to count as sleep


class Reading(NamedTuple):
    """Memory of the machine at a moment.

    Attributes:
        level: Memory pressure as macOS judges it: 1 normal, `WARNING` or `CRITICAL`.
        available: Share of the memory that is neither wired nor compressed, 0 to 1.
        swapped: Bytes swapped out.
    """

    level: int
    available: float
    swapped: int


Probe = Callable[[], Reading | None]


class _SwapUsage(ctypes.Structure):
    """``struct xsw_usage`` of macOS."""

    _fields_ = (
        *(("total", ctypes.c_uint64), ("available", ctypes.c_uint64), ("used", ctypes.c_uint64)),
        *(("page_size", ctypes.c_uint32), ("is_encrypted", ctypes.c_bool)),
    )


def read_pressure() -> Reading | None:
    """The kernel's reading on macOS; None elsewhere, or if it can't be read.

    By a system call and no program: starting one copies a large process, and takes long when memory
    is short.
    """
    if sys.platform != "darwin":
        return None
    level, available, swap = ctypes.c_int(), ctypes.c_int(), _SwapUsage()
    values: dict[str, Any] = {
        "kern.memorystatus_vm_pressure_level": level,
        "kern.memorystatus_level": available,
        "vm.swapusage": swap,
    }
    try:
        libc = ctypes.CDLL(None)
        for name, value in values.items():
            size = ctypes.c_size_t(ctypes.sizeof(value))
            if libc.sysctlbyname(
                name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)
            ):
                return None
    except (OSError, AttributeError):
        return None
    return Reading(level.value, available.value / 100, swap.used)


class PressureWatch:
    """Checks the memory every `EVERY` seconds.

    Args:
        probe: Returns a reading; once it returns None it is not called again.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self, probe: Probe = read_pressure, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._probe: Probe | None = probe
        self._clock = clock
        self._next = -float("inf")
        self._first: Reading | None = None
        self._warned = False
        self._short = self._critical = 0  # readings in a row

    def look(self) -> str | None:
        """Check the memory, if it is time to.

        Returns:
            A warning, the first time that memory is getting short; else None.

        Raises:
            StoppedError: If two readings in a row found hardly any left.
        """
        if self._probe is None or self._clock() < self._next:
            return None
        self._next = self._clock() + EVERY
        reading = self._probe()
        if reading is None:
            self._probe = None
            return None
        self._first = self._first or reading
        return self._judge(reading, reading.swapped - self._first.swapped)

    def _judge(self, reading: Reading, grown: int) -> str | None:
        state = (
            f"{reading.available:.0%} of the memory available, swap grown by "
            f"{grown / 2**30:.1f} GiB"
        )
        is_critical = reading.level >= CRITICAL or grown > MOST_SWAP
        self._critical = self._critical + 1 if is_critical else 0
        self._short = self._short + 1 if is_critical or reading.level >= WARNING else 0
        if self._critical == 2:
            raise StoppedError(f"memory is running out ({state})")
        if self._warned or self._short < 2:
            return None
        self._warned = True
        return f"memory is getting short ({state}); the run stops, saved, where it runs out"


@contextmanager
def shortage_explained(config: RunConfig, *, loading: bool = False) -> Iterator[None]:
    """Turn an error about memory in the block into one with advice.

    Args:
        config: The settings of the run.
        loading: Whether the block only loads data and model.

    Raises:
        MemoryShortError: If memory has run out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise MemoryShortError(
            f"not enough memory ({text}): close other programs, or start again with "
            f"{advice(config, loading=loading)}; mlx_dpo plan says what fits"
        ) from None


def advice(config: RunConfig, *, loading: bool = False) -> str:
    """The next setting to change, in the order of `mlx_dpo plan`, that is not changed already."""
    half = max(1, config.batch_size // 2)
    parts = -(-config.batch_size * config.grad_accumulation // half)
    is_full = config.method != "lora"
    bfloat16 = (config.dtype == "float32", "--dtype bfloat16")
    smaller = (True, "a smaller model" if is_full else "a smaller model, or one of fewer bits")
    if loading:  # there are no batches and no optimizer yet
        changes = [bfloat16, smaller]
    else:
        changes = [
            (config.reference == "copy", "--reference cached, which holds no second model"),
            (config.batch_size > 1, f"--batch-size {half} --grad-accumulation {parts}"),
            (not config.checkpoint_layers, "--checkpoint-layers"),
            (config.grad_clip > 0, "--grad-clip 0, which frees gradients as they are used"),
            bfloat16,
            (is_full and config.optimizer != "adafactor", "--optimizer adafactor"),
            (is_full, "--method lora, which trains small matrices beside the weights"),
            (config.max_length > 64, f"--max-length {config.max_length // 2}"),
            smaller,
        ]
    return next(setting for is_open, setting in changes if is_open)


@contextmanager
def keep_awake(
    *,
    platform: str = sys.platform,
    launch: Callable[[list[str]], object] = subprocess.Popen,
) -> Iterator[None]:
    """Keep a Mac from sleeping while the block runs; does nothing elsewhere.

    ``caffeinate -is``, never ``-d``: the display may go dark. It watches this process and ends
    with it, however it ends.

    Args:
        platform: As in `sys.platform`.
        launch: Starts a command; the process it returns is terminated at the end.
    """
    helper = None
    if platform == "darwin":
        try:
            helper = launch(["caffeinate", "-is", "-w", str(os.getpid())])
        except OSError:
            helper = None  # without it the Mac may sleep, and the run goes on afterwards
    try:
        yield
    finally:
        if isinstance(helper, subprocess.Popen):
            helper.terminate()
            helper.wait()


class StepClock:
    """Counts seconds of work, without those in which the machine slept.

    The running clock stands still in sleep (on macOS and Linux), the wall clock does not.

    Args:
        running: A clock that counts while the machine is awake, in seconds.
        wall: The time of day, in seconds.
    """

    def __init__(
        self,
        running: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._running, self._wall = running, wall
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._began = self._running(), self._wall()

    def lap(self) -> tuple[float, float]:
        """Seconds worked and slept since the count began."""
        worked = self._running() - self._began[0]
        ahead = self._wall() - self._began[1] - worked
        return worked, ahead if ahead > GAP else 0.0
