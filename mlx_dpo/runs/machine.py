"""The machine a run is on: memory that gets short or runs out, and sleep.

A Mac does not refuse memory, it swaps: first everything becomes slow, then the system ends
programs. So `PressureWatch` warns, then stops the run while it can still be saved. Its limits are
estimates; they were not measured on a Mac. `shortage_explained` turns MLX's error into a line that
says which setting to change. `keep_awake` prevents sleep, and `StepClock` notices it.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from mlx_dpo.errors import MemoryShortError, StoppedError, is_shortage
from mlx_dpo.runs.config import RunConfig

EVERY = 15.0  # seconds between two checks of the memory
LOW_FREE, LEAST_FREE = 0.15, 0.05  # share of the memory that is free: warn below, stop below
HIGH_SWAP, MOST_SWAP = 1 * 2**30, 4 * 2**30  # bytes swapped out since the run began: the same
TIMEOUT = 5.0  # seconds; under pressure a program may take long to start
GAP = 10.0  # seconds by which the wall clock must run ahead to count as sleep

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Reading(NamedTuple):
    """Memory of the machine at a moment.

    Attributes:
        free: Share of the memory that is free, 0 to 1.
        swapped: Bytes swapped out.
    """

    free: float
    swapped: int


Probe = Callable[[], Reading | None]


def read_pressure() -> Reading | None:
    """The reading of macOS; None elsewhere, or if it can't be read."""
    if sys.platform != "darwin":
        return None
    try:
        outputs = [
            subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT, check=True
            ).stdout
            for command in (["memory_pressure", "-Q"], ["sysctl", "-n", "vm.swapusage"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return parse(*outputs)


def parse(pressure: str, swap: str) -> Reading | None:
    """A reading from what ``memory_pressure -Q`` and ``sysctl -n vm.swapusage`` print."""
    free = re.search(r"free percentage:\s*(\d+)\s*%", pressure)
    used = re.search(r"used\s*=\s*([\d.,]+)\s*([KMG])", swap)
    if free is None or used is None:
        return None
    number = float(used[1].replace(",", "."))  # as the locale writes it
    return Reading(int(free[1]) / 100, int(number * _UNITS[used[2]]))


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
        self._short = 0  # readings in a row

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
        state = f"{reading.free:.0%} of the memory free, swap grown by {grown / 2**30:.1f} GiB"
        hardly_any = reading.free < LEAST_FREE or grown > MOST_SWAP
        self._short = self._short + 1 if hardly_any else 0
        if self._short == 2:
            raise StoppedError(f"memory is running out ({state})")
        if self._warned or (reading.free >= LOW_FREE and grown <= HIGH_SWAP):
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
    bfloat16 = (config.dtype == "float32", "--dtype bfloat16")
    smaller = (True, "a smaller model")
    if loading:  # there are no batches and no optimizer yet
        changes = [bfloat16, smaller]
    else:
        changes = [
            (config.reference == "copy", "--reference cached, which holds no second model"),
            (config.batch_size > 1, f"--batch-size {half} --grad-accumulation {parts}"),
            (not config.checkpoint_layers, "--checkpoint-layers"),
            (config.grad_clip > 0, "--grad-clip 0, which frees gradients as they are used"),
            bfloat16,
            (config.optimizer != "adafactor", "--optimizer adafactor"),
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
