"""A parent that starts a run again where it crashed: a fault, a signal, no memory, a lost peer."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from mlx_dpo.errors import DeviceFaultError, MlxDpoError, PeerError
from mlx_dpo.files import make_folder, write_file

RELAUNCHES = 3
PAUSE = 60.0  # seconds before a lost peer is looked for again; the second time twice as many
CRASHES = "crashes.json"
_REQUESTS = (signal.SIGINT, signal.SIGTERM)  # not crashes
_HINTS = {
    signal.SIGKILL: "the system sends it when memory runs out: lower --batch-size or --max-length",
    signal.SIGABRT: "MLX aborts when the GPU reports an error: lower --batch-size or --max-length",
}


class Process(Protocol):
    """The part of `subprocess.Popen` that is used."""

    def wait(self) -> int:
        """Its exit code; below 0 where a signal ended it."""

    def send_signal(self, number: int) -> None:
        """Send it a signal."""


def supervise(
    run: Path,
    command: Callable[[bool], list[str]],
    *,
    warn: Callable[[str], None],
    launch: Callable[[list[str]], Process] = subprocess.Popen,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Run a command, and again from its last checkpoint while crashes end it.

    A crash is a signal that nobody sent on purpose, or the exit code of a GPU fault, or of peers
    that were lost after the first step: a cable may be put back and a machine restart meanwhile.
    Before the first step, an address or a key is wrong, which a restart does not change.

    Args:
        run: The run's folder.
        command: The command line; True asks for one that resumes.
        warn: Called with a line about each crash.
        launch: Starts a child process.
        pause: Waits so many seconds.

    Returns:
        The exit code of a child that ended by itself, or by SIGINT or SIGTERM.

    Raises:
        MlxDpoError: If it crashed again after `RELAUNCHES` restarts; ``crashes.json`` in the
            run's folder says after how many steps each time.
    """
    crashes: list[dict[str, Any]] = []
    begun = _steps_logged(run)  # of a run that is resumed
    while True:
        code = _wait(launch(command(bool(crashes))))
        is_cut = code == PeerError.exit_code and _steps_logged(run) != begun
        if code >= 0 and code != DeviceFaultError.exit_code and not is_cut:
            return code
        if -code in _REQUESTS:
            return 128 - code
        name, hint = _cause(code)
        crashes.append({"signal": name, "steps_logged": _steps_logged(run)})
        make_folder(run)  # the child may have crashed before it, or removed it empty
        write_file(run / CRASHES, json.dumps(crashes, indent=2) + "\n")
        if len(crashes) > RELAUNCHES:
            steps = ", ".join(str(crash["steps_logged"]) for crash in crashes)
            raise MlxDpoError(
                f"{run}: {name} ended the run {len(crashes)} times, after steps {steps}: "
                f"{hint}; see {run / CRASHES}; the checkpoints are whole"
            )
        seconds = PAUSE * len(crashes) if is_cut else 0
        when = f" in {seconds:.0f} s" if is_cut else ""
        warn(f"{name} ended the run: {hint}; starting again{when}, {len(crashes)}/{RELAUNCHES}")
        if is_cut:
            pause(seconds)


def _cause(code: int) -> tuple[str, str]:
    """The name of a crash, and what may help."""
    if code == DeviceFaultError.exit_code:
        return "a GPU fault", "its message above says what helps"
    if code == PeerError.exit_code:
        return "a lost peer", "look at the cable and at the other machines"
    number = signal.Signals(-code)
    return number.name, _HINTS.get(number, "a fault in native code")


def _wait(child: Process) -> int:
    """Wait, leaving Ctrl-C to the child, which gets it from the terminal itself."""
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    older = signal.signal(signal.SIGTERM, lambda number, frame: child.send_signal(number))
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGINT, old)
        signal.signal(signal.SIGTERM, older)


def _steps_logged(run: Path) -> int:
    file = run / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.is_file() else []
    return sum(b'"loss"' in line and b'"held_out"' not in line for line in lines)
