"""A meter: wall time and memory of the phases of a program, and memory sampled as time goes on."""

import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

SAMPLED_EVERY = 0.01  # seconds


@dataclass
class Phase:
    """Time and memory of a phase, which may be entered several times.

    Attributes:
        seconds: Wall time, summed.
        count: Times it was entered.
        peak_bytes: Most that MLX held at once within it.
        live_bytes: What MLX held when it last ended.
        cache_bytes: Freed buffers that MLX kept when it last ended.
        footprint_bytes: Memory of the whole process then; see `footprint`.
    """

    seconds: float = 0.0
    count: int = 0
    peak_bytes: int = 0
    live_bytes: int = 0
    cache_bytes: int = 0
    footprint_bytes: int = 0


@dataclass(frozen=True)
class MemorySample:
    """Memory at a moment: seconds since the meter began, the phase, bytes MLX held."""

    seconds: float
    phase: str
    live_bytes: int


class Meter:
    """Measures phases, which don't nest. Their seconds and `between` add up to `seconds`.

    A thread samples memory meanwhile: MLX computes without holding Python's lock.

    Args:
        begins: Called with the name of each phase when it begins.
    """

    def __init__(self, begins: Callable[[str], None] = lambda name: None) -> None:
        self._begins = begins
        self.phases: dict[str, Phase] = {}
        self.samples: list[MemorySample] = []
        self.seconds = 0.0
        self._began = 0.0
        self._now = "between"
        self._ended = threading.Event()

    @property
    def between(self) -> float:
        """Seconds outside every phase."""
        return self.seconds - sum(phase.seconds for phase in self.phases.values())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure while the block runs."""
        self._began = time.perf_counter()
        sampler = threading.Thread(target=self._keep_sampling, daemon=True)
        sampler.start()
        try:
            yield
        finally:
            self.seconds = time.perf_counter() - self._began
            self._ended.set()
            sampler.join()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block as part of a phase: times add up, the larger peak stays."""
        self._begins(name)
        phase = self.phases.setdefault(name, Phase())
        mx.synchronize()
        mx.reset_peak_memory()
        self._now = name
        self._sample()
        start = time.perf_counter()
        yield
        mx.synchronize()
        phase.seconds += time.perf_counter() - start
        phase.count += 1
        # MLX's peak is 0 where nothing new was allocated; what it holds counts all the same.
        phase.live_bytes = mx.get_active_memory()
        phase.peak_bytes = max(phase.peak_bytes, mx.get_peak_memory(), phase.live_bytes)
        phase.cache_bytes = mx.get_cache_memory()
        phase.footprint_bytes = footprint()[0]
        self._sample()
        self._now = "between"

    def _sample(self) -> None:
        passed = time.perf_counter() - self._began
        self.samples.append(MemorySample(passed, self._now, mx.get_active_memory()))

    def _keep_sampling(self) -> None:
        while not self._ended.wait(SAMPLED_EVERY):
            self._sample()


def footprint() -> tuple[int, str]:
    """Memory of this process in bytes, and which figure that is.

    Linux has the memory resident now; elsewhere the standard library has only the largest so far.
    """
    if sys.platform == "linux":
        match = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
        if match:
            return 1024 * int(match[1]), "resident now (VmRSS)"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024), "largest resident so far (ru_maxrss)"
