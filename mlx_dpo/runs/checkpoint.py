"""Checkpoints of a run: all that a resumed run needs to go on as if it had never stopped."""

import hashlib
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
from mlx_dpo.models.parameters import load_arrays, named_arrays, save_arrays
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
            written = write_manifest(folder, files, step=step)
        latest = {"manifest": digest(written), "step": step}
        if (wrong := self._problem(path, latest)) is not None:
            raise DiskError(f"{path}: {wrong}, read back after it was written: check the disk")
        write_file(self.run / LATEST, canonical(latest))
        self._delete_old(step)
        return path

    def _problem(self, path: Path, latest: dict[str, Any] | None) -> str | None:
        step = _step(path)
        if (wrong := problem(path, step=step)) is not None:
            return wrong
        if latest and latest["step"] == step:
            text = (path / NAME).read_bytes()
            if digest(text) != latest["manifest"]:
                return f"{NAME} is not the one that {LATEST} names"
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
            if canonical(expected) == text:
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
        if digest((named / NAME).read_bytes()) == latest["manifest"]:
            return None
    return f"{LATEST} is not of the {NAME} of {named.name}, which it names"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _random_seed() -> int:
    """MLX's random state as the seed that restores it (assigning the state does not)."""
    key: Any = mx.random.state[0]  # type: ignore[index]  # published as a plain object
    high, low = key.tolist()
    return (int(high) << 32) | int(low)


# --- What a folder holds, to the byte, so that a later look notices one
# flipped bit.
#
# A manifest has exactly one spelling: sorted keys, no spaces, one line. A bit that flips in the
# manifest itself makes it another text, and so does anything it says that is not true.


NAME = "MANIFEST.json"
FORMAT = 1
LARGEST = 2**20  # bytes; a checkpoint's manifest has a few hundred


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def digest(data: bytes) -> str:
    """sha256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_manifest(folder: Path, files: dict[str, NewFile], **about: Any) -> bytes:
    """Write the manifest of a folder that holds exactly `files`, as they were written.

    Args:
        folder: Where they lie.
        files: By name; their digests are of what was meant to be written, not of what is there.
        about: What else the manifest says; `problem` is asked with the same.

    Returns:
        The manifest's bytes.

    Raises:
        OSError: If it can't be written.
    """
    entries = {name: {"bytes": f.size, "sha256": f.sha256} for name, f in files.items()}
    text = canonical({**about, "files": entries, "format": FORMAT})
    with NewFile(folder / NAME) as file:
        file.write(text)
    return text


def problem(folder: Path, **about: Any) -> str | None:
    """What is wrong with a folder that has a manifest, in words; None if nothing is.

    Every byte of every file is read.

    Args:
        folder: A folder that `write_manifest` was called for.
        about: What the manifest must say beside the files.
    """
    try:
        return _problem(folder, about)
    except OSError as error:
        return f"{error.filename or folder} can't be read: {error.strerror or error}"


def _problem(folder: Path, about: dict[str, Any]) -> str | None:
    file = folder / NAME
    if file.is_symlink() or not file.is_file():
        return f"{NAME} is missing"
    with file.open("rb") as handle:
        text = handle.read(LARGEST)
    entries = _entries(text, about)
    if entries is None:
        return f"{NAME} is not as it was written"
    found = {entry.name for entry in folder.iterdir()} - {NAME}
    for name in sorted(entries.keys() | found):
        if name not in found:
            return f"{name} is missing"
        if name not in entries:
            return f"{name} does not belong to it"
        if (wrong := _difference(folder / name, entries[name])) is not None:
            return f"{name} {wrong}"
    return None


def _entries(text: bytes, about: dict[str, Any]) -> dict[str, Any] | None:
    """The files a manifest names, if it is spelled as `write_manifest` spells and says `about`."""
    try:
        value = json.loads(text)
        entries = value["files"]
        is_ours = canonical(value) == text
        is_ours &= value == {**about, "files": entries, "format": FORMAT}
        is_ours &= all(entry.keys() == {"bytes", "sha256"} for entry in entries.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(entries) if is_ours else None


def _difference(file: Path, entry: dict[str, Any]) -> str | None:
    if file.is_symlink() or not file.is_file():
        return "is not a file"
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"has {size} bytes, and {entry['bytes']} were written"
    with file.open("rb") as handle:
        if hashlib.file_digest(handle, "sha256").hexdigest() != entry["sha256"]:
            return "does not hold what was written (sha256 differs)"
    return None


# --- Whether the disk has room for what a run will write, asked before it
# begins.


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
