"""A save that is interrupted at every call that changes the disk, and the checkpoints after it."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo import files
from mlx_dpo.errors import DiskError
from mlx_dpo.files import remove_leftovers
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.checkpoint import LATEST, Checkpoints, restore
from mlx_dpo.training.trainer import DPOTrainer
from tests.faults.disks import FailingDisk
from tests.faults.forks import run_child

IDENTITY = {"beta": 0.1}
BEFORE, DURING = (2, 3), 4  # steps whose checkpoints are there, and the one being saved


class Tiny(nn.Module):
    """Two parameters are enough for every kind of file."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embed = nn.Embedding(7, width)
        self.head = nn.Linear(width, 7)

    def __call__(self, ids: mx.array) -> mx.array:
        """Logits."""
        logits: mx.array = self.head(self.embed(ids))
        return logits


def trainer_at(step: int, width: int = 3) -> DPOTrainer:
    """A trainer whose weights, optimizer and cursor follow from the step."""
    trainer = DPOTrainer(
        Tiny(width),
        ref_model=Tiny(width),
        examples=[PreferenceExample([1], [2], [3])] * 9,
        max_seq_len=4,
        pad_id=0,
        beta=0.1,
        batch_size=1,
        max_steps=9,
        max_lr=0.1,
    )
    put_at(trainer, step)
    return trainer


def put_at(trainer: DPOTrainer, step: int) -> None:
    """Move a trainer to a step, as if it had trained."""
    for index, name in enumerate(("embed", "head")):
        layer = trainer.model[name]
        shape, size = layer.weight.shape, layer.weight.size
        layer.weight = mx.arange(size, dtype=mx.float32).reshape(shape) + step + index
    trainer.model["head"].bias = mx.ones(7) * step
    moment = mx.ones_like(trainer.model["embed"].weight) * step
    trainer.optimizer.state["embed"]["weight"]["m"] = moment
    trainer.step, trainer.order.position = step, step
    mx.eval(trainer.model.parameters(), trainer.optimizer.state)


def begin(run: Path) -> None:
    """Save the checkpoints that are there before the one that is interrupted."""
    run.mkdir(parents=True)
    checkpoints = Checkpoints(run)
    for step in BEFORE:
        checkpoints.save(trainer_at(step), IDENTITY)


def save_on(run: Path, at: int, mode: str) -> None:
    """Save on a disk that fails; a full one must be reported, and do once there is room."""
    checkpoints, trainer = Checkpoints(run), trainer_at(DURING)
    checkpoints.newest_whole()
    files.disk = FailingDisk(at, mode)
    try:
        checkpoints.save(trainer, IDENTITY)
    except DiskError as error:
        if error.exit_code != 7 or "No space left" not in str(error):
            raise
        files.disk = files.Disk()
        look(run)
        checkpoints.save(trainer, IDENTITY)
        assert Checkpoints(run).newest_whole().path == run / f"step-{DURING:06d}"
        raise SystemExit(7) from None


def look(run: Path) -> None:
    """Find the newest whole checkpoint: the last one or the one before, exact, nothing damaged."""
    newest = Checkpoints(run).newest_whole()
    assert newest.path is not None
    assert not newest.problems, newest.problems
    step = int(newest.path.name[5:])
    assert step in (BEFORE[-1], DURING), step
    restored, expected = trainer_at(0), trainer_at(step)
    restore(newest.path, restored)
    assert fingerprint(restored.model) == fingerprint(expected.model)
    assert restored.state() == expected.state()
    moments = [t.optimizer.state["embed"]["weight"]["m"] for t in (restored, expected)]
    assert mx.array_equal(*moments)


def go_on(run: Path) -> None:
    """Look, sweep up, and save the next one."""
    look(run)
    remove_leftovers(run)
    checkpoints = Checkpoints(run)
    checkpoints.newest_whole()
    checkpoints.save(trainer_at(DURING + 1), IDENTITY)
    names = {entry.name for entry in run.iterdir()}
    assert len(names) == 3, names
    assert names >= {LATEST, f"step-{DURING + 1:06d}"}


def every_boundary(folder: Path, mode: str, report: Callable[[str], None] = print) -> int:
    """Interrupt a save at call 1, 2, 3, ... until one survives.

    Args:
        folder: An empty one to work in.
        mode: Of `FailingDisk`.
        report: Called with a line for each boundary after which something is not as promised.

    Returns:
        The number of boundaries; -1 if one failed.
    """
    assert run_child(partial(begin, folder / "before")) == 0
    ended, bad = {"full": 7}.get(mode, -9), 0
    for at in range(1, 1000):
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / "before", run)
        code = run_child(partial(save_on, run, at, mode))
        if code == 0:
            return at - 1 if not bad else -1
        if code != ended or run_child(partial(go_on, run)) != 0:
            report(f"{mode} at call {at}: ended with {code}, not as promised")
            bad += 1
    raise AssertionError("no save survived")
