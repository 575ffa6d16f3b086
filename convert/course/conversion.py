"""A whole conversion of a course model: artifact to MLX folder, or back."""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo.convert.course.artifact import (
    CourseCheckpoint,
    read_artifact,
    read_course_folder,
    write_artifact,
    write_course_folder,
)
from mlx_dpo.convert.course.params import params_to_mlx
from mlx_dpo.convert.dtypes import cast, dtype_names, largest_change, num_parameters
from mlx_dpo.convert.options import Options, Say
from mlx_dpo.convert.torch_zip.archive import read_torch_zip
from mlx_dpo.convert.weights import same_bits
from mlx_dpo.errors import MlxDpoError
from mlx_dpo.files import new_folder
from mlx_dpo.models.course import CourseModel


def to_mlx(source: Path, destination: Path, options: Options, say: Say) -> None:
    """Convert an artifact to an MLX folder.

    Raises:
        UsageError: If the artifact is not as it must be.
        MlxDpoError: If the proof fails; nothing is left then.
        DiskError: If the disk does not take it.
    """
    checkpoint = _ready(read_artifact(source), options, say)
    with new_folder(destination, replace=options.overwrite) as folder:
        write_course_folder(checkpoint, folder)
        if options.verify:
            _compare(checkpoint.arrays, read_course_folder(folder).arrays)
            say(_proof(checkpoint))


def to_torch(source: Path, destination: Path, options: Options, say: Say) -> None:
    """Convert an MLX folder of a course model back to an artifact.

    Raises:
        UsageError: If the folder is not as it must be.
        MlxDpoError: If the proof fails; nothing is left then.
        DiskError: If the disk does not take it.
    """
    checkpoint = _ready(read_course_folder(source), options, say)
    with new_folder(destination, replace=options.overwrite) as folder:
        name = write_artifact(checkpoint, folder)
        file = folder / "model.pt"
        if options.verify:
            params = read_torch_zip(file)["params"]
            _compare(checkpoint.arrays, params_to_mlx(params, checkpoint.args, file))
            say(_proof(checkpoint) + _asked_torch(file, len(checkpoint.arrays)))
    say(f"the course looks for it as artifacts/models/{name}")


def _ready(checkpoint: CourseCheckpoint, options: Options, say: Say) -> CourseCheckpoint:
    arrays = checkpoint.arrays
    say(f"{' and '.join(dtype_names(arrays))}, {num_parameters(arrays):,} parameters")
    ready = cast(arrays, options.mlx_dtype)
    if options.mlx_dtype is not None:
        change = max(largest_change(arrays[name], ready[name]) for name in arrays)
        say(f"cast to {options.dtype}: largest change of a weight {change:.1e}")
        if options.verify:
            say(_logits_beside(checkpoint, ready))
    return replace(checkpoint, arrays=ready)


def _logits_beside(checkpoint: CourseCheckpoint, ready: Mapping[str, mx.array]) -> str:
    """What a cast does to the logits of as many tokens as the model has positions."""
    args = checkpoint.args
    ids = mx.arange(args.max_seq_len)[None] % args.vocab_size
    logits = []
    for arrays in (checkpoint.arrays, ready):
        model = CourseModel(args)
        model.load_weights([(name, value.astype(mx.float32)) for name, value in arrays.items()])
        logits.append(model(ids))
    before, after = logits
    difference, largest = float(mx.abs(before - after).max()), float(mx.abs(before).max())
    equal = int((before.argmax(-1) == after.argmax(-1)).sum())
    return (
        f"logits before and after the cast: largest difference {difference:.1e} of "
        f"{largest:.3g}, likeliest token equal at {equal} of {ids.size} positions"
    )


def _compare(expected: Mapping[str, mx.array], found: Mapping[str, mx.array]) -> None:
    for name, value in expected.items():
        if name not in found or not same_bits(value, found[name]):
            raise MlxDpoError(f"{name}: is not the same after conversion there and back")


def _proof(checkpoint: CourseCheckpoint) -> str:
    return f"weights: there and back is bit-identical, all {len(checkpoint.arrays)} tensors"


def _asked_torch(file: Path, expected: int) -> str:
    """What torch itself says of model.pt."""
    if importlib.util.find_spec("torch") is None:
        return "; torch itself was not asked: it is not installed"
    import torch

    content: Any = torch.load(file, map_location="cpu", weights_only=True)
    if len(content["params"]) != expected:
        raise MlxDpoError(f"{file.name}: torch.load finds {len(content['params'])} tensors")
    return "; torch.load(weights_only=True) reads them"
