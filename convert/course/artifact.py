"""Artifacts of the course to MLX folders and back."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.convert.course.checkpoint import (
    CourseCheckpoint,
    read_artifact,
    read_course_folder,
    write_artifact,
    write_course_folder,
)
from mlx_dpo.convert.course.files import (
    CONFIG,
    MANIFEST,
    hf_folders,
    is_artifact,
    is_hf_artifact,
    is_transformer_artifact,
    read_json,
    write_json,
)
from mlx_dpo.convert.course.manifest import dpo_manifest
from mlx_dpo.errors import UsageError
from mlx_dpo.files import new_folder
from mlx_dpo.models.course import MODEL_TYPE, CourseArgs, CourseModel
from mlx_dpo.models.hub import load_tokenizer

__all__ = [
    "CourseCheckpoint",
    "course_shell",
    "export_artifact",
    "hf_folders",
    "import_artifact",
    "is_artifact",
    "is_course_folder",
    "is_hf_artifact",
    "is_transformer_artifact",
    "load_course_folder",
    "load_course_model",
    "load_course_tokenizer",
    "read_artifact",
    "read_course_folder",
    "write_artifact",
    "write_course_folder",
    "write_hf_records",
]


def import_artifact(folder: Path, out: Path) -> None:
    """Convert a course artifact to an MLX folder; dtypes stay.

    Args:
        folder: ``artifacts/models/<name>``; only read.
        out: The new folder; it appears whole or not at all.

    Raises:
        UsageError: If the artifact is not as it must be.
        DiskError: If the folder can't be written.
    """
    _check_out(folder, out)
    checkpoint = read_artifact(folder)
    with new_folder(out) as temporary:
        write_course_folder(checkpoint, temporary)


def export_artifact(folder: Path, out: Path) -> str:
    """Convert an MLX folder back to an artifact the course loads.

    Args:
        folder: Written by `import_artifact`, or by a run that started from such a folder.
        out: The new folder; it appears whole or not at all.

    Returns:
        The name in its manifest. The course looks for ``artifacts/models/<that name>``.

    Raises:
        UsageError: If the folder is not as it must be.
        DiskError: If the artifact can't be written.
    """
    _check_out(folder, out)
    checkpoint = read_course_folder(folder)
    with new_folder(out) as temporary:
        return write_artifact(checkpoint, temporary)


def load_course_folder(folder: Path, dtype: mx.Dtype = mx.float32) -> tuple[nn.Module, Any]:
    """An MLX folder of a course model, and its tokenizer; see `load_course_model`."""
    return load_course_model(folder, dtype), load_course_tokenizer(folder)


def load_course_model(folder: Path, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """Load the weights of an MLX folder of a course model.

    Raises:
        UsageError: If it is not as it must be.
    """
    checkpoint = read_course_folder(folder)
    model = CourseModel(checkpoint.args)
    model.load_weights([(k, v.astype(dtype)) for k, v in checkpoint.arrays.items()])
    model.eval()
    mx.eval(model.state)
    return model


def course_shell(folder: Path) -> nn.Module:
    """The module of a course folder, its weights random and unevaluated.

    Raises:
        UsageError: If its config is not as it must be.
    """
    try:
        return CourseModel(CourseArgs.from_dict(read_json(folder / CONFIG)))
    except ValueError as error:
        raise UsageError(f"{folder / CONFIG}: {error}") from None


def load_course_tokenizer(folder: Path) -> Any:
    """The tokenizer of an MLX folder of a course model, as `hub.load_tokenizer` gives it.

    Raises:
        UsageError: If there is none or it can't be loaded.
    """
    from transformers import AutoConfig, PretrainedConfig

    # transformers reads config.json on its way to the tokenizer, and warns of a type it does not
    # know.
    named = type("CourseConfig", (PretrainedConfig,), {"model_type": MODEL_TYPE})
    AutoConfig.register(MODEL_TYPE, named, exist_ok=True)
    return load_tokenizer(folder)


def is_course_folder(folder: Path) -> bool:
    """Whether a folder is the MLX form of a course model."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        return read_json(folder / CONFIG).get("model_type") == MODEL_TYPE
    except UsageError:
        return False


def write_hf_records(
    folder: Path,
    config: dict[str, Any],
    manifest: dict[str, Any],
    run: dict[str, Any] | None = None,
) -> str:
    """Write config.json and manifest.json of a BaseLM artifact on its way back.

    Args:
        folder: The artifact; ``hf_model`` and ``hf_tokenizer`` are written by others.
        config: The course's config.json of the SFT artifact.
        manifest: Its manifest.json.
        run: ``dpo.json`` of the run; None where nothing was trained.

    Returns:
        The name in its manifest.
    """
    changed = dpo_manifest(manifest, run)
    # What is loaded lies in the artifact itself, and runs no code of its own.
    own = {"model_path": "hf_model", "tokenizer_path": "hf_tokenizer", "trust_remote_code": False}
    write_json(folder / CONFIG, config | own)
    write_json(folder / MANIFEST, changed)
    return str(changed.get("name"))


def _check_out(folder: Path, out: Path) -> None:
    here, there = folder.resolve(), out.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise UsageError(f"{out}: overlaps the source {folder}, which is never written to")
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out}: exists; choose another name")
