"""How long the phases of a step take, for whoever measures."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

PHASES = ("data", "reference", "forward_backward", "update")


class Phases:
    """Times the phases of a step: called as ``with phases("update"):``.

    Attributes:
        seconds: Of the last step, by phase: ``data`` (fetching the pairs), ``reference``,
            ``forward_backward``, ``update`` (gradient norm included).
        around: Entered around each phase, by its name.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.around: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()

    def reset(self) -> None:
        """Begin a step."""
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is inside; entered again, seconds add up."""
        start = time.perf_counter()
        with self.around(name):
            yield
        self.seconds[name] += time.perf_counter() - start
