"""Where a model comes from: a folder here or a name on the hub, in a form that MLX reads.

Checkpoints in PyTorch's own formats are converted when they are first asked for, and kept.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_dpo.convert.conversion import Kind, Options, convert, kind_of
from mlx_dpo.convert.course.artifact import MANIFEST, tokenizer_file
from mlx_dpo.convert.course.checkpoint import is_course_folder, read_course_folder
from mlx_dpo.convert.hf.names import RULES
from mlx_dpo.convert.weights import weight_files
from mlx_dpo.errors import UsageError
from mlx_dpo.files import entries_of, mark_used
from mlx_dpo.models.hub import download, is_hub_id, is_quantised, read_config, read_json

if TYPE_CHECKING:
    import mlx.nn as nn

CONVERTED = Path("runs/.converted")  # converted checkpoints, for the runs that start from them

_HUB_FILES = ["*.json", "model*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
_SUFFIXES = (".json", ".pt", ".bin", ".safetensors", ".model", ".txt", ".jinja")


def load(path: str | Path) -> "tuple[nn.Module, Any]":
    """Load a model as float32 MLX arrays, with its tokenizer.

    Nothing is written into the current folder: a checkpoint that has to be converted is kept in
    ``$XDG_CACHE_HOME/mlx_dpo/converted`` (by default below ``~/.cache``).

    Args:
        path: A model folder in MLX or Hugging Face layout, a course artifact, or a hub id
            ``owner/name``.

    Returns:
        An `mlx.nn.Module` called as ``model(ids, cache=None)``, and the tokenizer.

    Raises:
        UsageError: If it is not there or can't be loaded.
        DiskError: If the converted checkpoint can't be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return load_folder(find_mlx(path, cache / "mlx_dpo" / "converted"))


def load_folder(folder: Path, dtype: str = "float32") -> "tuple[nn.Module, Any]":
    """The same for a folder from `find_mlx`, as ``float32`` or ``bfloat16``."""
    return load_model(folder, dtype), load_tokenizer(folder)


def load_model(folder: Path, dtype: str = "float32") -> "nn.Module":
    """The same without the tokenizer."""
    import mlx.core as mx

    from mlx_dpo.models import hub

    if is_course_folder(folder):
        read_course_folder(folder)  # a record that does not fit is refused before the run
    return hub.load_model(folder, mx.bfloat16 if dtype == "bfloat16" else mx.float32)


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model that `load` accepts, without its weights."""
    from mlx_dpo.models import hub

    folder = find_mlx(path)
    return hub.load_tokenizer(folder)


def find_mlx(path: str | Path, store: Path = CONVERTED) -> Path:
    """The folder of a model in a form MLX reads.

    Args:
        path: A folder or hub id.
        store: Where a checkpoint that has to be converted is kept.

    Raises:
        UsageError: If there is no such model or it can't be converted.
        DiskError: If the converted checkpoint can't be written.
    """
    folder = find(path)
    return converted_once(folder, store) if needs_conversion(folder) else folder


def find(path: str | Path) -> Path:
    """The folder of a model; a hub id is downloaded unless the hub's cache holds it.

    Raises:
        UsageError: If there is no such folder and it can't be a hub id, or the hub has none.
    """
    name = str(path)
    try:
        folder = Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{name}: no such user") from None
    if name and folder.is_dir():
        return folder
    if name and folder.exists():
        raise UsageError(f"{name}: is a file; --model takes a model folder")
    if not is_hub_id(name):
        raise UsageError(f"{name}: no such model folder, and not a hub id of the form owner/name")
    downloaded = download(name, _HUB_FILES)
    if any(downloaded.glob("model*.safetensors")):
        return downloaded
    return download(name, [*_HUB_FILES, "pytorch_model*"])


def name_of(path: str | Path) -> str:
    """A model's name, for the folders of its runs: the last part of its path or hub id."""
    folder = Path(path).expanduser()
    return folder.resolve().name if folder.is_dir() else folder.name


def needs_conversion(folder: Path) -> bool:
    """Whether a model folder has to be converted before a run can start from it.

    Either MLX can't read it, or the way back to PyTorch would be lost.

    Raises:
        UsageError: If the folder's config.json or convert.json can't be read.
    """
    kind = kind_of(folder)
    if kind in (Kind.COURSE, Kind.COURSE_BASE):
        return True
    if kind is Kind.HUGGING_FACE and (folder / "config.json").is_file():
        # With no rule for its names, only what a conversion records leads back to PyTorch.
        config = read_config(folder)
        if config.get("model_type") not in RULES and not is_quantised(config):
            return True
    has_safetensors = any(folder.glob("model*.safetensors"))
    return not has_safetensors and weight_files(folder)[1] != "safetensors"


def converted_once(folder: Path, store: Path) -> Path:
    """The MLX folder of a checkpoint inside `store`; changed files make another entry.

    Args:
        folder: A folder for which `needs_conversion` holds; only read.
        store: A folder of converted checkpoints, made if it is not there.

    Raises:
        UsageError: If the checkpoint can't be converted.
        DiskError: If the result can't be written.
    """
    digest = hashlib.sha256()
    for file in _content(folder):
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    out = store / f"{folder.resolve().name}-{digest.hexdigest()[:16]}"
    if (out / "config.json").is_file():
        mark_used(out)
    else:
        convert(folder, out, Options(to="mlx", verify=False), lambda line: None)
    return out


def _content(folder: Path) -> Iterator[Path]:
    """The files that decide what a conversion makes of a folder."""
    for part in (folder, folder / "hf_model", folder / "hf_tokenizer"):
        if part.is_dir():
            yield from sorted(f for f in entries_of(part) if f.suffix in _SUFFIXES and f.is_file())
    if kind_of(folder) is Kind.COURSE:
        yield tokenizer_file(folder, read_json(folder / MANIFEST))
