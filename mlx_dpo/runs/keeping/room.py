"""Whether the disk has room for what a run will write, asked before it begins."""

import os
import shutil
from collections import Counter
from pathlib import Path

from mlx_dpo.errors import DiskError
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.runs.keeping.checkpoint import KEPT
from mlx_dpo.training.trainer import DPOTrainer

MARGIN = 32 * 2**20  # bytes; metrics, settings, what the file system keeps for itself


def free_bytes(folder: Path) -> int:
    """Bytes a user may still write where `folder` lies."""
    return shutil.disk_usage(folder).free


def run_needs(trainer: DPOTrainer, run: Path, out: Path) -> list[tuple[str, Path, int]]:
    """What a run will write, as `check_room` takes it.

    The checkpoints that are kept and the one being written beside them, less those that are there
    already; and the finished model.
    """
    state = (trainer.model.trainable_parameters(), trainer.optimizer.state)
    checkpoint = sum(array.nbytes for tree in state for array in named_arrays(tree).values())
    there = sum(file.stat().st_size for file in run.glob("step-*/*.safetensors"))
    model = sum(array.nbytes for array in named_arrays(trainer.model.parameters()).values())
    return [
        ("checkpoints", run, max(checkpoint, (KEPT + 1) * checkpoint - there)),
        ("the finished model", out, model),
    ]


def check_room(needs: list[tuple[str, Path, int]]) -> None:
    """Refuse to begin what the disk can't hold.

    Args:
        needs: What is written, the folder it goes into (which may not be there yet), and bytes.
            Folders on one disk share its room.

    Raises:
        DiskError: If a disk has less.
    """
    wanted: Counter[int] = Counter()
    places: dict[int, Path] = {}
    for _, folder, size in needs:
        there = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
        device = os.stat(there).st_dev
        places[device] = there
        wanted[device] += size
    for device, size in wanted.items():
        free = free_bytes(places[device])
        if free < size + MARGIN:
            parts = ", ".join(f"{name} {_gib(n)}" for name, _, n in needs)
            raise DiskError(
                f"{places[device]}: {_gib(free)} free, and this run writes up to "
                f"{_gib(size + MARGIN)} there ({parts}): make room first"
            )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
