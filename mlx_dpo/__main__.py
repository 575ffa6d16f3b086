"""The command, from its first moment on: `mlx_dpo` and `python -m mlx_dpo` begin here."""

import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn


def main() -> Any:
    """Run the command line; Ctrl-C and SIGTERM exit 75, while modules are imported too."""
    # A module that is being imported may swallow an exception: nothing is begun, so leave at once.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    _mend_surroundings()
    from mlx_dpo.cli import main as run

    try:
        # From here on the command line catches it, reports it and cleans up.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:  # before it began or when it was done
        _leave()


class _Stderr(io.TextIOWrapper):
    """A stderr that may be gone, as that of a closed terminal: a run continues without it."""

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with suppress(OSError):
            super().flush()


def _mend_surroundings() -> None:
    """Let a command work if streams are closed or the folder for temporary files is missing."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would be taken for stderr
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    buffer = sys.stderr.buffer if sys.stderr else os.fdopen(2, "wb", closefd=False)
    sys.stderr = _Stderr(buffer, "utf-8", "backslashreplace", line_buffering=True)
    folder = os.environ.get("TMPDIR")
    if folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        del os.environ["TMPDIR"]  # MLX and Python would fail at the first temporary file
        sys.stderr.write(f"mlx_dpo: TMPDIR {folder!r} is no folder to write to, and is not used\n")


def _leave(number: int = 0, frame: FrameType | None = None) -> NoReturn:
    os.write(2, b"mlx_dpo: interrupted\n")
    os._exit(75)


if __name__ == "__main__":
    main()
