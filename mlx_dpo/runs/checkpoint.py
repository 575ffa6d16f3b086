"""Checkpoints of a run: all that a resumed run needs to give the bytes of one that never stopped.

And whether the disk has room for them and for the finished model.
"""

import json
import os
import re
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_dpo.errors import DiskError, UsageError
from mlx_dpo.files import NewFile, new_folder, remove_folder, write_file
from mlx_dpo.manifest import MANIFEST, canonical, digest, find_damage, write_manifest
from mlx_dpo.models.adapters import adapter_parameters
from mlx_dpo.models.parameters import load_arrays, named_arrays, num_bytes, save_arrays
from mlx_dpo.training.trainer import DPOTrainer

NUM_KEPT = 2  # checkpoints
LATEST = "LATEST"
MARGIN = 32 * 2**20  # bytes; metrics, settings, what the file system keeps for itself
_NAME = re.compile(r"step-(\d{6,})")


class Newest(NamedTuple):
    """The newest checkpoint that is whole.

    Attributes:
        path: Its folder; None where the run has not written any yet.
        problems: What is wrong with the newer ones, a line each.
    """

    path: Path | None
    problems: list[str]


class Checkpoints:
    """The checkpoints in a run's folder, which no other process may write to meanwhile.

    Each is a folder with a manifest, made under a temporary name. ``LATEST`` is written after it
    and holds the newest step and the digest of its manifest.

    Args:
        run: The folder.

    Attributes:
        best: Steps after which the best evaluation was made; that checkpoint is kept as well.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.best: int | None = None
        self._whole: set[Path] = set()  # every byte was read since this process began

    def newest_whole(self) -> Newest:
        """Check the checkpoints, newest first, until every byte of one is as it was written.

        Raises:
            UsageError: If there are some, and none is whole.
        """
        latest, problems = self._read_latest()
        paths = list(reversed(_checkpoints(self.run)))
        if latest and (problem := _problem_with_latest(latest, paths)):
            problems.append(f"{self.run}: {problem}")
        for path in paths:
            damage = self._find_damage(path, latest)
            if damage is None:
                return Newest(path, problems)
            problems.append(f"{path}: damaged: {damage}")
        if problems:
            raise UsageError(
                f"{'; '.join(problems)}; no checkpoint of this run is whole: start a new --run-dir"
            )
        return Newest(None, [])

    def save(
        self, trainer: DPOTrainer, identity: dict[str, Any], logs: dict[str, str] | None = None
    ) -> Path:
        """Write ``step-000123/``, read it back, and only then delete all but newest two and best.

        Args:
            trainer: Its weights, optimizer, step and data cursor are saved, and MLX's random state.
            identity: What a resumed run must share with this one.
            logs: Checks of the lines logged so far, as from `RunFolder.checks`.

        Returns:
            The folder.

        Raises:
            DiskError: If it could not be written, or reading it back gives other bytes; earlier
                checkpoints are untouched.
        """
        step = trainer.step
        path = self.run / f"step-{step:06d}"
        if path in self._whole:
            return path
        state = {
            "trainer": trainer.state(),
            "random": _random_seed(),
            "identity": identity,
            "logs": logs or {},
        }
        with new_folder(path, replace=True) as folder:  # one that is there is damaged
            weights, optimizer = trainer.model.trainable_parameters(), trainer.optimizer.state
            files = {
                "weights.safetensors": save_arrays(folder / "weights.safetensors", weights),
                "optimizer.safetensors": save_arrays(folder / "optimizer.safetensors", optimizer),
            }
            with NewFile(folder / "state.json") as files["state.json"]:
                files["state.json"].write((json.dumps(state, indent=2) + "\n").encode())
            manifest = write_manifest(folder, files, step=step)
        latest = {"manifest": digest(manifest), "step": step}
        if (damage := self._find_damage(path, latest)) is not None:
            raise DiskError(f"{path}: {damage}, read back after it was written: check the disk")
        write_file(self.run / LATEST, canonical(latest))
        self._delete_old(step)
        return path

    def go_on_from(self, path: Path) -> None:
        """Let LATEST name a whole checkpoint: a run that was killed may not have come to it."""
        manifest = digest((path / MANIFEST).read_bytes())
        text = canonical({"manifest": manifest, "step": _step(path)})
        file = self.run / LATEST
        if not file.is_file() or file.read_bytes() != text:
            write_file(file, text)

    def of_best(self) -> Path | None:
        """The checkpoint of the best evaluation; None where it is missing or damaged."""
        if self.best is None:
            return None
        path = self.run / f"step-{self.best:06d}"
        return path if self._find_damage(path, None) is None else None

    def _find_damage(self, path: Path, latest: dict[str, Any] | None) -> str | None:
        step = _step(path)
        if (damage := find_damage(path, step=step)) is not None:
            return damage
        if latest and latest["step"] == step:
            text = (path / MANIFEST).read_bytes()
            if digest(text) != latest["manifest"]:
                return f"{MANIFEST} is not the one that {LATEST} names"
        self._whole.add(path)
        return None

    def _read_latest(self) -> tuple[dict[str, Any] | None, list[str]]:
        file = self.run / LATEST
        if not file.exists():
            return None, []
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            text = file.read_bytes()
            value = json.loads(text)
            latest = {"manifest": str(value["manifest"]), "step": int(value["step"])}
            if canonical(latest) == text:
                return latest, []
        return None, [f"{file}: damaged: not as it was written"]

    def _delete_old(self, step: int) -> None:
        """Keep the newest whole ones up to `step`; later ones lie beyond where the run resumed."""
        num_kept = 0
        for path in reversed(_checkpoints(self.run)):
            is_candidate = _step(path) <= step and num_kept < NUM_KEPT
            if is_candidate and (path in self._whole or self._find_damage(path, None) is None):
                num_kept += 1
            elif _step(path) != self.best:
                self._whole.discard(path)
                with suppress(OSError):  # one that can't be deleted only takes room
                    remove_folder(path)


def _checkpoints(run: Path) -> list[Path]:
    """Checkpoint folders of a run, in order of their steps."""
    if not run.is_dir():
        return []
    return sorted((p for p in run.iterdir() if _NAME.fullmatch(p.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _problem_with_latest(latest: dict[str, Any], paths: list[Path]) -> str | None:
    """Whether LATEST names a step that is not there, or another manifest than that step's."""
    named = next((path for path in paths if _step(path) == latest["step"]), None)
    if named is None:
        return f"the checkpoint of step {latest['step']} is missing"
    if named == paths[0]:
        return None  # compared when it is checked
    with suppress(OSError):
        if digest((named / MANIFEST).read_bytes()) == latest["manifest"]:
            return None
    return f"{LATEST} names another {MANIFEST} than that of {named.name}"


def _random_seed() -> int:
    """MLX's random state as the seed that restores it (assigning the state does not)."""
    key: Any = mx.random.state[0]  # type: ignore[index]  # published as a plain object
    high, low = key.tolist()
    return (int(high) << 32) | int(low)


def check_identity(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Refuse to continue from a checkpoint of a run with other settings, model or data.

    Raises:
        UsageError: If the checkpoint is damaged, or something differs; the message names it.
    """
    saved = _read_state(checkpoint)["identity"]
    for key in dict.fromkeys([*identity, *saved]):
        if saved.get(key) != identity.get(key):
            name = "number of steps" if key == "steps" else key.replace("_", " ")
            raise UsageError(
                f"{checkpoint}: cannot continue with another {name}: it was "
                f"{_short(saved.get(key))}, now {_short(identity.get(key))}; start a new --run-dir"
            )


def checks_of(checkpoint: Path) -> dict[str, str]:
    """The checks of the logged lines that were given to `Checkpoints.save`.

    Raises:
        UsageError: If the checkpoint is damaged.
    """
    logs: dict[str, str] = _read_state(checkpoint).get("logs", {})  # older ones have none
    return logs


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:8]}..." if len(text) == 64 else text  # the rest of a digest helps nobody


def restore(checkpoint: Path, trainer: DPOTrainer) -> None:
    """Set a trainer and MLX's random state to what a checkpoint holds.

    Raises:
        UsageError: If the checkpoint is damaged.
    """
    state = _read_state(checkpoint)
    optimizer = _read_arrays(checkpoint, "optimizer", trainer.optimizer.state)
    restore_weights(checkpoint, trainer)
    trainer.optimizer.state = tree_unflatten(list(optimizer.items()))
    mx.eval(trainer.model.parameters(), trainer.optimizer.state)
    mx.random.seed(state["random"])
    trainer.restore(state["trainer"])


def restore_weights(checkpoint: Path, trainer: DPOTrainer) -> None:
    """Set the weights of a trainer's policy to those of a checkpoint, and nothing else.

    Raises:
        UsageError: If the checkpoint is damaged.
    """
    weights = _read_arrays(checkpoint, "weights", trainer.model.trainable_parameters())
    trainer.model.load_weights(list(weights.items()), strict=False)
    mx.eval(trainer.model.parameters())


def _read_state(checkpoint: Path) -> dict[str, Any]:
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        numbers = [state["trainer"][key] for key in ("step", "epoch", "position")]
        are_numbers = all(type(n) is int and 0 <= n < 2**64 for n in (*numbers, state["random"]))
        if are_numbers and state["identity"].get:
            return cast("dict[str, Any]", state)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise _damaged(checkpoint, "state.json is missing or not as it was written")


def _read_arrays(checkpoint: Path, name: str, tree: Any) -> dict[str, mx.array]:
    """The arrays of a file, which must have exactly the names, shapes and dtypes of `tree`."""
    try:
        arrays = load_arrays(checkpoint / f"{name}.safetensors")
    except UsageError as error:
        raise _damaged(checkpoint, str(error)) from None
    expected = named_arrays(tree)
    for key in sorted(arrays.keys() ^ expected.keys()):
        problem = "missing from" if key in expected else "not expected in"
        raise _damaged(checkpoint, f"{key} is {problem} {name}.safetensors")
    for key, array in arrays.items():
        if (array.shape, array.dtype) != (expected[key].shape, expected[key].dtype):
            raise _damaged(
                checkpoint,
                f"{key} is {array.dtype} {array.shape}, expected {expected[key].dtype} "
                f"{expected[key].shape}",
            )
    return arrays


def _damaged(checkpoint: Path, problem: str) -> UsageError:
    return UsageError(
        f"{checkpoint}: damaged: {problem}; delete this folder to continue from the one before"
    )


def run_needs(
    trainer: DPOTrainer, run: Path, out: Path, *, keeps_best: bool = False
) -> list[tuple[str, Path, int]]:
    """What a run will write, as `check_room` takes it.

    The checkpoints that are kept and the one being written beside them, less those that are there
    already; and the finished model.
    """
    num_kept = NUM_KEPT + keeps_best
    trees = (trainer.model.trainable_parameters(), trainer.optimizer.state)
    checkpoint = sum(map(num_bytes, trees))
    finished = adapter_parameters(trainer.model) or trainer.model.parameters()
    present = sum(file.stat().st_size for file in run.glob("step-*/*.safetensors"))
    return [
        ("checkpoints", run, max(checkpoint, (num_kept + 1) * checkpoint - present)),
        ("the finished model", out, num_bytes(finished)),
    ]


def check_room(needs: list[tuple[str, Path, int]]) -> None:
    """Refuse to begin a run whose files the disk can't hold.

    Args:
        needs: What is written, the folder it goes into (which may not be there yet), and bytes.
            Folders on one disk share its room.

    Raises:
        DiskError: If a disk has less.
    """
    bytes_on: Counter[int] = Counter()
    folder_on: dict[int, Path] = {}
    for _, folder, size in needs:
        existing = next(p for p in (folder, *folder.absolute().parents) if p.is_dir())
        device = os.stat(existing).st_dev
        folder_on[device] = existing
        bytes_on[device] += size
    for device, size in bytes_on.items():
        free = free_bytes(folder_on[device])
        if free < size + MARGIN:
            parts = ", ".join(f"{name} {_gib(n)}" for name, _, n in needs)
            raise DiskError(
                f"{folder_on[device]}: {_gib(free)} free, and this run writes up to "
                f"{_gib(size + MARGIN)} there ({parts}): make room first"
            )


def free_bytes(folder: Path) -> int:
    """Bytes a user may still write on the disk of `folder`."""
    return shutil.disk_usage(folder).free


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
