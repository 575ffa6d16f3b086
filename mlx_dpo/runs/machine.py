"""A machine that runs out of memory: warn, then stop while the run can still be saved.

A Mac does not refuse memory, it swaps: first everything becomes slow, then the system ends
programs. The figures below are judgement; they were not measured on a Mac.
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

EVERY = 15.0  # seconds between two looks
LOW_FREE, LEAST_FREE = 0.15, 0.05  # share of the memory that is free: warn below, stop below
HIGH_SWAP, MOST_SWAP = 1 * 2**30, 4 * 2**30  # bytes swapped out since the run began: the same
TIMEOUT = 5.0  # seconds; under pressure a program may take long to start

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Reading(NamedTuple):
    """What the system says.

    Attributes:
        free: Share of the memory that is free, 0 to 1.
        swapped: Bytes swapped out.
    """

    free: float
    swapped: int


Probe = Callable[[], Reading | None]


def read_pressure() -> Reading | None:
    """What macOS says; None elsewhere, or where it can't be read."""
    if sys.platform != "darwin":
        return None
    try:
        said = [
            subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT, check=True
            ).stdout
            for command in (["memory_pressure", "-Q"], ["sysctl", "-n", "vm.swapusage"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return parse(*said)


def parse(pressure: str, swap: str) -> Reading | None:
    """A reading from what ``memory_pressure -Q`` and ``sysctl -n vm.swapusage`` print."""
    free = re.search(r"free percentage:\s*(\d+)\s*%", pressure)
    used = re.search(r"used\s*=\s*([\d.,]+)\s*([KMG])", swap)
    if free is None or used is None:
        return None
    number = float(used[1].replace(",", "."))  # as the locale writes it
    return Reading(int(free[1]) / 100, int(number * _UNITS[used[2]]))


class PressureWatch:
    """Looks at the memory now and then, and remembers what it saw.

    Args:
        probe: Gives a reading; None once, and it is not asked again.
        clock: Seconds that pass.
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
        """Look, if it is time to.

        Returns:
            A warning, the first time that memory is getting short.

        Raises:
            StoppedError: If at two looks in a row there was hardly any left.
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


# --- When memory runs out: an error of MLX becomes one line that says
# which setting to change.


@contextmanager
def shortage_explained(config: RunConfig, *, loading: bool = False) -> Iterator[None]:
    """Turn an error about memory into one with advice.

    Args:
        config: The settings of the run inside.
        loading: Whether nothing happens inside but that the model is read.

    Raises:
        MemoryShortError: If memory has run out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise MemoryShortError(
            f"not enough memory ({said}): close other programs, or start again with "
            f"{advice(config, loading=loading)}; mlx_dpo plan says what fits"
        ) from None


def advice(config: RunConfig, *, loading: bool = False) -> str:
    """The next setting to change, in the order of `mlx_dpo plan`; never one that is so already."""
    half = max(1, config.batch_size // 2)
    parts = -(-config.batch_size * config.grad_accumulation // half)
    bfloat16 = (config.dtype == "float32", "--dtype bfloat16")
    smaller = (True, "a smaller model")
    if loading:  # batches and optimizer are not there yet
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


# --- A laptop that sleeps: kept awake while a run trains, noticed when it
# slept all the same.


GAP = 10.0  # seconds by which the wall clock runs ahead before it is called sleep


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
        launch: Starts a command; what it returns is terminated in the end.
    """
    helper = None
    if platform == "darwin":
        try:
            helper = launch(["caffeinate", "-is", "-w", str(os.getpid())])
        except OSError:
            helper = None  # a Mac without it sleeps, and the run goes on afterwards
    try:
        yield
    finally:
        if isinstance(helper, subprocess.Popen):
            helper.terminate()
            helper.wait()


class StepClock:
    """Seconds of work, without those in which the machine slept.

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
        """Begin to count."""
        self._began = self._running(), self._wall()

    def lap(self) -> tuple[float, float]:
        """Seconds worked and slept since the count began."""
        worked = self._running() - self._began[0]
        ahead = self._wall() - self._began[1] - worked
        return worked, ahead if ahead > GAP else 0.0
