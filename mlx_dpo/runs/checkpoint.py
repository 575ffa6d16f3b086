"""Checkpoints of a run: all that a resumed run needs to go on as if it had never stopped."""

import json
import re
import shutil
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_dpo.errors import UsageError
from mlx_dpo.files import new_folder
from mlx_dpo.models.parameters import load_arrays, named_arrays, save_arrays
from mlx_dpo.training.trainer import DPOTrainer

KEPT = 2
_NAME = re.compile(r"step-(\d{6,})")


def save(run: Path, trainer: DPOTrainer, identity: dict[str, Any]) -> Path:
    """Write ``step-000123/`` and delete all but the newest two.

    Args:
        run: The run's folder.
        trainer: Its weights, optimizer, step and data cursor are saved, and MLX's random state.
        identity: What a resumed run must share with this one.

    Returns:
        The new folder.

    Raises:
        DiskError: If it could not be written; earlier checkpoints are untouched.
    """
    path = run / f"step-{trainer.step:06d}"
    with new_folder(path) as folder:
        save_arrays(folder / "weights.safetensors", trainer.model.trainable_parameters())
        save_arrays(folder / "optimizer.safetensors", trainer.optimizer.state)
        state = {"trainer": trainer.state(), "random": _random_seed(), "identity": identity}
        (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for old in _checkpoints(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(reversed(_checkpoints(run)), None)


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


def _random_seed() -> int:
    """MLX's random state as the seed that restores it (assigning the state does not)."""
    key: Any = mx.random.state[0]  # type: ignore[index]  # published as a plain object
    high, low = key.tolist()
    return (int(high) << 32) | int(low)
