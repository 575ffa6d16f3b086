"""The command, from its first moment on: `mlx_dpo` and `python -m mlx_dpo` begin here."""

import os
import signal
from types import FrameType
from typing import Any, NoReturn


def main() -> Any:
    """Run the command line; Ctrl-C and SIGTERM exit 75, while modules are imported too."""
    # A module that is being imported may swallow an exception: nothing is begun, so leave at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from mlx_dpo.cli import main as run

    try:
        # Now there is who catches it, tells of it and cleans up.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:  # before it began or when it was done
        _leave()


def _leave(number: int = 0, frame: FrameType | None = None) -> NoReturn:
    os.write(2, b"mlx_dpo: interrupted\n")
    os._exit(75)


if __name__ == "__main__":
    main()
