"""A whole conversion of a course model: artifact to MLX folder, or back."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from mlx_dpo.convert.course.artifact import (
    CourseCheckpoint,
    read_artifact,
    read_course_folder,
    write_artifact,
    write_course_folder,
)
from mlx_dpo.convert.course.files import MODEL
from mlx_dpo.convert.course.params import params_to_mlx
from mlx_dpo.convert.course.proof import check_logits
from mlx_dpo.convert.dtypes import cast, dtype_names, largest_change, num_parameters
from mlx_dpo.convert.options import Options, Say
from mlx_dpo.convert.torch_zip.archive import read_torch_zip
from mlx_dpo.convert.weights import same_bits
from mlx_dpo.errors import MlxDpoError
from mlx_dpo.files import new_folder


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
            written = read_course_folder(folder).arrays
            _compare(checkpoint.arrays, written)
            say(_proof(checkpoint))
            exact = options.dtype is None
            say(check_logits(source / MODEL, written, checkpoint.args, folder, exact=exact))


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
            say(_proof(checkpoint))
            exact = options.dtype is None
            before = read_course_folder(source).arrays
            say(check_logits(file, before, checkpoint.args, source, exact=exact))
    say(f"the course looks for it as artifacts/models/{name}")


def _ready(checkpoint: CourseCheckpoint, options: Options, say: Say) -> CourseCheckpoint:
    arrays = checkpoint.arrays
    say(f"{' and '.join(dtype_names(arrays))}, {num_parameters(arrays):,} parameters")
    ready = cast(arrays, options.mlx_dtype)
    if options.mlx_dtype is not None:
        change = max(largest_change(arrays[name], ready[name]) for name in arrays)
        say(f"cast to {options.dtype}: largest change of a weight {change:.1e}")
    return replace(checkpoint, arrays=ready)


def _compare(expected: Mapping[str, mx.array], found: Mapping[str, mx.array]) -> None:
    for name, value in expected.items():
        if name not in found or not same_bits(value, found[name]):
            raise MlxDpoError(f"{name}: is not the same after conversion there and back")


def _proof(checkpoint: CourseCheckpoint) -> str:
    return f"weights: there and back is bit-identical, all {len(checkpoint.arrays)} tensors"
