"""Where the time of a step goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

PHASES = ("data", "reference", "forward_backward", "update")


class Phases:
    """Times the phases of a step: called as ``with phases("update"):``.

    Attributes:
        seconds: Of the last step, by phase: ``data`` (fetching the pairs), ``reference``,
            ``forward_backward``, ``update`` (gradient norm included); ``peers`` where there are
            some (waiting for them, and sums). Of a phase within another, only the inner counts.
        around: Entered around each phase, by its name.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.around: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
        self._within = 0.0  # seconds of phases within the present one

    def reset(self) -> None:
        """Begin a step."""
        self.seconds, self._within = dict.fromkeys(PHASES, 0.0), 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is inside; entered again, seconds add up."""
        start, outside, self._within = time.perf_counter(), self._within, 0.0
        with self.around(name):
            yield
        spent = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._within
        self._within = outside + spent
