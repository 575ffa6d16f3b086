"""Ctrl-C and SIGTERM: when they end a run at once, and when something has to be saved first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from mlx_dpo.errors import StoppedError


class Stop:
    """Whether a signal asked the run to end.

    Attributes:
        asked: A signal came.
        waits: There is something to save: a signal is noted, and looked at after the batch.
            Otherwise it ends the run where it is.
        message: What is lost then, and what to do.
    """

    asked = False
    waits = False
    message = "stopped before the first step; nothing is lost, start it again"

    def check(self) -> None:
        """Leave now, if a signal came.

        Raises:
            StoppedError: If it did.
        """
        if self.asked:
            raise StoppedError(self.message)


@contextmanager
def stop_on_signal(told: Callable[[], None] | None = None) -> Iterator[Stop]:
    """Let SIGINT and SIGTERM end what runs inside; a second one ends the process at once.

    At once means by the kernel: no Python code runs any more, not even in the middle of a long
    computation. What is on disk is whole at any moment.

    Args:
        told: Called from the handler when the first signal has to wait for a batch.

    Raises:
        StoppedError: If a signal came while there was nothing to save.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        for each in old:
            signal.signal(each, signal.SIG_DFL)
        if not stop.waits:
            raise KeyboardInterrupt
        if told is not None:
            told()

    try:
        for number in old:
            signal.signal(number, ask)
        yield stop
    except KeyboardInterrupt:
        stop.check()
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
