"""Ends a rank whose peers are silent for too long, or that is asked to end a second time."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from mlx_dpo.errors import PeerError
from mlx_dpo.runs.launcher import QUIT, is_ours
from mlx_dpo.training.peers import STOPPED

ALONE = "what rank 0 does alone"  # answers, writes
# Others may be downloading a model, comparing ways to score, reading or writing a model.
_LONG = {"settings", "model and data", "way to score", ALONE, "state", "the end"}
_PATIENCE = 10
REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Watchdog(threading.Thread):
    """Ends the process where a peer is silent for too long, or when it is told to a second time.

    While MLX waits for a peer no handler of Python runs, but threads do.
    """

    def __init__(self, timeout: float, rank: int) -> None:
        super().__init__(daemon=True)
        self._timeout, self._rank = timeout, rank
        self._waits: tuple[float, str, float] | None = None  # until when, for what, since seconds
        self._requests = 0
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._stdin = [0] if is_ours() else []
        self._old = -1
        self.is_closed = False

    def open(self) -> None:
        """Begin to watch; signals are seen here even where their handlers have to wait."""
        if threading.current_thread() is threading.main_thread():
            self._old = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self.start()

    def close(self) -> None:
        """Watch no longer."""
        self.is_closed = True
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._old)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """The others are waited for while the block runs."""
        is_long = what in _LONG and not (what == ALONE and self._rank == 0)
        seconds = self._timeout * (_PATIENCE if is_long else 1)
        self._waits = time.monotonic() + seconds, what, seconds
        try:
            yield
        finally:
            self._waits = None

    def run(self) -> None:
        """Look several times a second."""
        while not self.is_closed:
            ready, _, _ = select.select([self._woken, *self._stdin], [], [], 0.2)
            if self._woken in ready:
                self._signalled(os.read(self._woken, 64))
            if 0 in ready:
                self._told(os.read(0, 64))
            waits = self._waits
            if waits is not None and time.monotonic() > waits[0]:
                self._leave(
                    PeerError.exit_code,
                    f"no answer from the other ranks for {waits[2]:.0f} s (--peer-timeout), "
                    f"waiting for {waits[1]}; what was saved is whole: go on with --resume",
                )

    def _signalled(self, numbers: bytes) -> None:
        self._requests += sum(number in REQUESTS for number in numbers)
        if self._requests > 1:
            self._leave(STOPPED, "interrupted")
        elif self._requests and self._waits is not None and self._rank == 0:
            os.write(2, b"stopping when the other ranks answer; a second time stops at once\n")

    def _told(self, words: bytes) -> None:
        if QUIT in words:
            os._exit(STOPPED)
        if not words:  # the launcher is gone
            self._stdin = []
        os.kill(os.getpid(), signal.SIGTERM)

    def _leave(self, code: int, text: str) -> None:
        os.write(2, f"mlx_dpo: rank {self._rank}: {text}\n".encode())
        os._exit(code)


@contextmanager
def signals_wait() -> Iterator[None]:
    """A signal that comes while the block runs is handled after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = list[int]()
    old = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in REQUESTS
        if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    for first in came[:1]:  # called, not sent: the watchdog has counted it
        cast("Callable[[int, Any], Any]", old[signal.Signals(first)])(first, None)
