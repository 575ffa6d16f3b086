"""A machine that runs out of memory: warn, then stop while the run can still be saved.

A Mac does not refuse memory, it swaps: first everything becomes slow, then the system ends
programs. The figures below are judgement; they were not measured on a Mac.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from mlx_dpo.errors import StoppedError

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
