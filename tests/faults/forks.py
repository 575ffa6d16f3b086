"""Children of this process, forked before MLX has computed anything: many lives, imported once."""

import os
import sys
import traceback
from collections.abc import Callable


def run_child(life: Callable[[], object], *, quiet: bool = False) -> int:
    """Run `life` in a forked child.

    Args:
        life: What the child does.
        quiet: Whether its output is thrown away.

    Returns:
        Its exit code; below 0 where a signal ended it, 1 for an exception (printed unless quiet).
    """
    return wait(start_child(life, quiet=quiet))


def start_child(life: Callable[[], object], *, quiet: bool = False) -> int:
    """The same without waiting; its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if quiet:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
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
