"""Saves onto a real disk that fills up: a tmpfs of a given size, where mounting is permitted."""

import subprocess
from functools import partial
from pathlib import Path

from mlx_dpo.errors import DiskError
from mlx_dpo.runs.checkpoint import Checkpoints
from tests.faults.forks import run_child
from tests.faults.saves import IDENTITY, trainer_at

WIDTH = 1200  # a checkpoint has about 270 KiB, and a tmpfs hands out 4 at a time
ROOMY = 4096  # KiB; enough for every checkpoint of the test


def mount(folder: Path, kib: int, *, again: bool = False) -> bool:
    """Mount a tmpfs, or give one another size; False where that is not permitted."""
    options = f"size={kib}k" + (",remount" if again else "")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def unmount(folder: Path) -> None:
    """Undo `mount`."""
    subprocess.run(["umount", str(folder)], check=True)


def fill(run: Path, first: int) -> None:
    """Save step after step until the disk is full (exit 7), or eight steps on (exit 0)."""
    checkpoints = Checkpoints(run)
    checkpoints.newest_whole()
    for step in range(first, first + 8):
        try:
            checkpoints.save(trainer_at(step, WIDTH), IDENTITY)
        except DiskError as error:
            found = Checkpoints(run).newest_whole()
            assert not found.problems, found
            # This step's where only LATEST found no room; none where the first one did not fit.
            steps = [int(found.path.name[5:])] if found.path else [0]
            assert steps[0] in (step - 1, step), found
            raise SystemExit(error.exit_code) from None


def filled_and_freed(folder: Path, kib: int) -> tuple[int, bool]:
    """Save on a disk of `kib` KiB until it is full, make room, and save on.

    Returns:
        Exit code of the process that met the full disk, and whether all was as promised.
    """
    folder.mkdir(parents=True)
    if not mount(folder, kib):
        raise PermissionError("mounting is not permitted here")
    try:
        run = folder / "run"
        run.mkdir()
        first = run_child(partial(fill, run, 1))
        mount(folder, ROOMY, again=True)
        saved = sorted(int(path.name[5:]) for path in run.glob("step-*"))
        second = run_child(partial(fill, run, (saved or [0])[-1] + 1))
        return first, first in (0, 7) and second == 0
    finally:
        unmount(folder)
