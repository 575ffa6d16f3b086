"""A laptop that sleeps: kept awake while a run trains, noticed when it slept all the same."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
