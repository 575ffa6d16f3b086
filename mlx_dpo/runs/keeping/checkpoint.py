"""Checkpoints of a run: all that a resumed run needs to go on as if it had never stopped."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_dpo.disk import NewFile
from mlx_dpo.errors import DiskError, UsageError
from mlx_dpo.files import new_folder, remove_folder, write_file
from mlx_dpo.models.parameters import load_arrays, named_arrays, save_arrays
from mlx_dpo.runs.keeping import manifest
from mlx_dpo.training.trainer import DPOTrainer

KEPT = 2
LATEST = "LATEST"
_NAME = re.compile(r"step-(\d{6,})")


class Found(NamedTuple):
    """The newest checkpoint that is whole.

    Attributes:
        path: Its folder; None where the run has not written any yet.
        problems: What is wrong with the newer ones, a line each.
    """

    path: Path | None
    problems: list[str]


class Checkpoints:
    """The checkpoints of a run's folder, to which nobody else writes at the time.

    Each is a folder with a manifest, made under a temporary name. ``LATEST`` is written after it
    and holds the newest step and the digest of its manifest.

    Args:
        run: The folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._whole: set[Path] = set()  # every byte was read since this process began

    def newest_whole(self) -> Found:
        """Look at the checkpoints, newest first, until every byte of one is as it was written.

        Raises:
            UsageError: If there are some, and none is whole.
        """
        latest, problems = self._read_latest()
        found = list(reversed(_checkpoints(self.run)))
        if latest and (wrong := _wrong_with_latest(latest, found)):
            problems.append(f"{self.run}: {wrong}")
        for path in found:
            wrong = self._problem(path, latest)
            if wrong is None:
                return Found(path, problems)
            problems.append(f"{path}: damaged: {wrong}")
        if problems:
            raise UsageError(
                f"{'; '.join(problems)}; no checkpoint of this run is whole: start a new --run-dir"
            )
        return Found(None, [])

    def save(self, trainer: DPOTrainer, identity: dict[str, Any]) -> Path:
        """Write ``step-000123/``, read it back, and only then delete all but the newest two.

        Args:
            trainer: Its weights, optimizer, step and data cursor are saved, and MLX's random state.
            identity: What a resumed run must share with this one.

        Returns:
            The folder.

        Raises:
            DiskError: If it could not be written or is not what was written; earlier checkpoints
                are untouched.
        """
        step = trainer.step
        path = self.run / f"step-{step:06d}"
        if path in self._whole:
            return path
        state = {"trainer": trainer.state(), "random": _random_seed(), "identity": identity}
        with new_folder(path, replace=True) as folder:  # one that is there is damaged
            weights, optimizer = trainer.model.trainable_parameters(), trainer.optimizer.state
            files = {
                "weights.safetensors": save_arrays(folder / "weights.safetensors", weights),
                "optimizer.safetensors": save_arrays(folder / "optimizer.safetensors", optimizer),
            }
            with NewFile(folder / "state.json") as files["state.json"]:
                files["state.json"].write((json.dumps(state, indent=2) + "\n").encode())
            written = manifest.write_manifest(folder, files, step=step)
        latest = {"manifest": manifest.digest(written), "step": step}
        if (wrong := self._problem(path, latest)) is not None:
            raise DiskError(f"{path}: {wrong}, read back after it was written: check the disk")
        write_file(self.run / LATEST, manifest.canonical(latest))
        self._delete_old(step)
        return path

    def _problem(self, path: Path, latest: dict[str, Any] | None) -> str | None:
        step = _step(path)
        if (wrong := manifest.problem(path, step=step)) is not None:
            return wrong
        if latest and latest["step"] == step:
            text = (path / manifest.NAME).read_bytes()
            if manifest.digest(text) != latest["manifest"]:
                return f"{manifest.NAME} is not the one that {LATEST} names"
        self._whole.add(path)
        return None

    def _read_latest(self) -> tuple[dict[str, Any] | None, list[str]]:
        file = self.run / LATEST
        if not file.exists():
            return None, []
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            text = file.read_bytes()
            value = json.loads(text)
            expected = {"manifest": str(value["manifest"]), "step": int(value["step"])}
            if manifest.canonical(expected) == text:
                return expected, []
        return None, [f"{file}: damaged: not as it was written"]

    def _delete_old(self, step: int) -> None:
        """Keep the newest whole ones up to `step`; a later one is of a past that was given up."""
        kept = 0
        for path in reversed(_checkpoints(self.run)):
            known = _step(path) <= step and kept < KEPT
            if known and (path in self._whole or self._problem(path, None) is None):
                kept += 1
            else:
                self._whole.discard(path)
                with suppress(OSError):  # what can't be deleted is only in the way
                    remove_folder(path)


def check_identity(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Refuse to go on with a run that is not the one that wrote a checkpoint.

    Raises:
        UsageError: If the checkpoint is damaged, or something differs; the message names it.
    """
    was = _read_state(checkpoint)["identity"]
    for key, value in identity.items():
        if was.get(key) != value:
            raise UsageError(
                f"{checkpoint}: cannot go on with another {key.replace('_', ' ')}: it was "
                f"{_short(was.get(key))}, now {_short(value)}; start a new --run-dir"
            )


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:8]}..." if len(text) == 64 else text  # a digest tells a person nothing


def restore(checkpoint: Path, trainer: DPOTrainer) -> None:
    """Put a trainer where a checkpoint was written.

    Raises:
        UsageError: If the checkpoint is damaged.
    """
    state = _read_state(checkpoint)
    weights = _read_arrays(checkpoint, "weights", trainer.model.trainable_parameters())
    optimizer = _read_arrays(checkpoint, "optimizer", trainer.optimizer.state)
    trainer.model.load_weights(list(weights.items()), strict=False)
    trainer.optimizer.state = tree_unflatten(list(optimizer.items()))
    mx.eval(trainer.model.parameters(), trainer.optimizer.state)
    mx.random.seed(state["random"])
    trainer.restore(state["trainer"])


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


def _read_arrays(checkpoint: Path, name: str, expected: Any) -> dict[str, mx.array]:
    """The arrays of a file, which must have exactly the names, shapes and dtypes expected."""
    try:
        found = load_arrays(checkpoint / f"{name}.safetensors")
    except UsageError as error:
        raise _damaged(checkpoint, str(error)) from None
    wanted = named_arrays(expected)
    for key in sorted(found.keys() ^ wanted.keys()):
        problem = "missing from" if key in wanted else "not expected in"
        raise _damaged(checkpoint, f"{key} is {problem} {name}.safetensors")
    for key, array in found.items():
        if (array.shape, array.dtype) != (wanted[key].shape, wanted[key].dtype):
            raise _damaged(
                checkpoint,
                f"{key} is {array.dtype} {array.shape}, expected {wanted[key].dtype} "
                f"{wanted[key].shape}",
            )
    return found


def _damaged(checkpoint: Path, problem: str) -> UsageError:
    return UsageError(
        f"{checkpoint}: damaged: {problem}; delete this folder to continue from the one before"
    )


def _checkpoints(run: Path) -> list[Path]:
    if not run.is_dir():
        return []
    found = [(int(m[1]), p) for p in run.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def _wrong_with_latest(latest: dict[str, Any], found: list[Path]) -> str | None:
    """A step that is not there, or a digest that is not its; a newer one may well be there."""
    named = next((path for path in found if _step(path) == latest["step"]), None)
    if named is None:
        return f"the checkpoint of step {latest['step']} is missing"
    if named == found[0]:
        return None  # compared when it is looked at
    with suppress(OSError):
        if manifest.digest((named / manifest.NAME).read_bytes()) == latest["manifest"]:
            return None
    return f"{LATEST} is not of the {manifest.NAME} of {named.name}, which it names"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _random_seed() -> int:
    """MLX's random state as the seed that restores it (assigning the state does not)."""
    key: Any = mx.random.state[0]  # type: ignore[index]  # published as a plain object
    high, low = key.tolist()
    return (int(high) << 32) | int(low)
