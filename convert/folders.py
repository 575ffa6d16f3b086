"""What a folder is, what may be written where, and what travels beside the weights."""

import shutil
from enum import Enum
from pathlib import Path

from mlx_dpo.convert import record as records
from mlx_dpo.convert.course.files import is_hf_artifact, is_transformer_artifact
from mlx_dpo.convert.weights import MADE_BY, weight_files
from mlx_dpo.errors import UsageError
from mlx_dpo.files import inside
from mlx_dpo.models.parameters import read_header

# What travels beside the weights: tokenizer, chat template, generation settings, licence.
_COMPANIONS = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt"),
    *("merges.txt", "chat_template*", "generation_config.json", "*.tiktoken", "LICENSE*"),
)


class Kind(Enum):
    """Kinds of model folders, as they are called on the screen."""

    HUGGING_FACE = "Hugging Face folder"
    MLX = "MLX folder"
    COURSE = "course artifact"
    COURSE_BASE = "course artifact of a Hugging Face model"
    COURSE_MLX = "MLX folder of a course model"

    @property
    def is_mlx(self) -> bool:
        """Whether it is one of MLX's."""
        return self in (Kind.MLX, Kind.COURSE_MLX)


def kind_of(folder: Path) -> Kind:
    """What a folder is.

    Where a folder could be read either way, as a llama's can, what it says of itself decides:
    convert.json, dpo.json, or the format named in its weights.

    Raises:
        UsageError: If it is no folder, or its convert.json can't be read.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    if is_transformer_artifact(folder):
        return Kind.COURSE
    if is_hf_artifact(folder):
        return Kind.COURSE_BASE
    recorded = records.source_kind(folder)
    if recorded not in (None, "huggingface"):
        return Kind.COURSE_MLX
    if recorded or (folder / "dpo.json").exists() or _metadata(folder).get("format") == "mlx":
        return Kind.MLX
    return Kind.HUGGING_FACE


def check_destination(source: Path, destination: Path, overwrite: bool) -> None:
    """Refuse a destination that would harm something.

    Raises:
        UsageError: If it is the source, lies inside it or around it, or is there and may not be
            replaced.
    """
    here, there = source.resolve(), destination.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(f"{destination}: overlaps the source {source}, which is never written to")
    if not destination.exists() and not destination.is_symlink():
        return
    if not overwrite:
        raise UsageError(f"{destination}: exists; pass --overwrite to replace it, or another name")
    if not _made_here(destination):
        raise UsageError(f"{destination}: exists and no conversion made it; choose another name")


def copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template, generation settings and licence.

    Raises:
        UsageError: If one of them is a link that leads out of the source.
    """
    for pattern in _COMPANIONS:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                shutil.copyfile(inside(source, file.name), folder / file.name)


def _made_here(folder: Path) -> bool:
    """Whether a conversion wrote it, and not a run or somebody else."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    weights = folder / "hf_model" if is_hf_artifact(folder) else folder
    return MADE_BY.items() <= _metadata(weights).items()


def _metadata(folder: Path) -> dict[str, str]:
    """Of the first safetensors file; empty where there is none or it can't be read."""
    try:
        files, kind, _ = weight_files(folder)
        return read_header(files[0]).metadata if kind == "safetensors" else {}
    except UsageError:
        return {}
