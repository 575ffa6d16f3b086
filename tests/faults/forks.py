"""Children that each live a life: forked before MLX has computed anything, or started anew.

A fork imports nothing, which makes thousands of lives affordable. On macOS it is not possible:
MLX's allocator is Metal's there, whatever the device, and Metal can't be used after a fork without
exec. So lives are picklable, and a child there is a new Python that is handed one.
"""

import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

FORKS = sys.platform != "darwin"

_CHILD = "import sys; from tests.faults.forks import live_pickled; live_pickled(sys.argv[1])"


def run_child(life: Callable[[], object], *, quiet: bool = False) -> int:
    """Run `life` in a child process.

    Args:
        life: What the child does; picklable.
        quiet: Whether its output is thrown away.

    Returns:
        Its exit code; below 0 where a signal ended it, 1 for an exception (printed unless quiet).
    """
    return wait(start_child(life, quiet=quiet))


def start_child(life: Callable[[], object], *, quiet: bool = False) -> int:
    """The same without waiting; its process id."""
    if not FORKS:
        nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", _CHILD, pickle.dumps(life).hex()],
            os.environ,
            file_actions=nowhere if quiet else [],
        )
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    if quiet:
        nowhere_file = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere_file, 1)
        os.dup2(nowhere_file, 2)
    _live(life)
    return 0  # not reached


def live_pickled(life: str) -> None:
    """Live a pickled life, in hexadecimal; the process ends with it."""
    _live(pickle.loads(bytes.fromhex(life)))


def _live(life: Callable[[], object]) -> None:
    code = 1
    try:
        life()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Exit code of a child; below 0 where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class ForkedWorker:
    """Stands for the `subprocess.Popen` of `preferences.worker`: a fork has its imports already."""

    def __init__(self, command: list[str], *, pass_fds: list[int], **_: Any) -> None:
        self._code: int | None = None
        self.pid = start_child(lambda: _work(pass_fds[0]))

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        if self._code is None:
            self._code = wait(self.pid)
        return self._code

    def kill(self) -> None:
        """End it."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _work(line: int) -> None:
    from mlx_dpo.preferences.worker import serve

    os.setsid()
    for number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    for name in os.listdir("/dev/fd"):  # its parent's end of the line, too: it must see that close
        if int(name) > 2 and int(name) != line:
            with suppress(OSError):
                os.close(int(name))
    with suppress(EOFError), Connection(line) as asking:
        serve(asking)


def tell(wrong: str) -> None:
    """Say what was not as promised, if anything."""
    if wrong:
        print(wrong[:2000], file=sys.stderr, flush=True)
