"""Where models come from: a folder here, or a name on the hub."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_dpo.convert.conversion import convert
from mlx_dpo.convert.course.files import MANIFEST, read_json, tokenizer_file
from mlx_dpo.convert.folders import Kind, kind_of
from mlx_dpo.convert.hf.names import RULES
from mlx_dpo.convert.options import Options
from mlx_dpo.convert.weights import weight_files
from mlx_dpo.errors import UsageError
from mlx_dpo.files import mark_used
from mlx_dpo.models.hub import read_config
from mlx_dpo.preferences.templates import prepare

if TYPE_CHECKING:
    import mlx.nn as nn

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "model*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
CONVERTED = Path("runs/.converted")  # what PyTorch's formats became, for runs that start from them


def load(path: str | Path) -> "tuple[nn.Module, Any]":
    """Load a model as float32 MLX arrays, with its tokenizer.

    Args:
        path: A model folder in MLX or Hugging Face layout, a course artifact, or a hub id
            ``owner/name``.

    Returns:
        An `mlx.nn.Module` called as ``model(ids, cache=None)``, and the tokenizer.

    Raises:
        UsageError: If it is not there or can't be loaded.
    """
    return load_folder(find_mlx(path))


def load_folder(folder: Path, dtype: str = "float32") -> "tuple[nn.Module, Any]":
    """The same for a folder that `find_mlx` gave, as ``float32`` or ``bfloat16``."""
    tokenizer = load_tokenizer(folder)
    return load_model(folder, dtype), tokenizer


def load_model(folder: Path, dtype: str = "float32") -> "nn.Module":
    """The same without the tokenizer."""
    import mlx.core as mx

    from mlx_dpo.convert.course import artifact as course
    from mlx_dpo.models import hub

    wanted = mx.bfloat16 if dtype == "bfloat16" else mx.float32
    if course.is_course_folder(folder):
        return course.load_course_model(folder, wanted)
    return hub.load_model(folder, wanted)


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model that `load` accepts, without its weights."""
    from mlx_dpo.convert.course import artifact as course
    from mlx_dpo.models import hub

    folder = find_mlx(path)
    if course.is_course_folder(folder):
        return course.load_course_tokenizer(folder)
    prepare()
    return hub.load_tokenizer(folder)


def find_mlx(path: str | Path) -> Path:
    """The folder of a model in a form MLX reads; others are converted once and kept.

    Raises:
        UsageError: If there is no such model or it can't be converted.
    """
    pass

    folder = find(path)
    return converted_once(folder, CONVERTED) if needs_conversion(folder) else folder


def find(path: str | Path) -> Path:
    """The folder of a model; a hub id is downloaded unless the cache holds it.

    A path that begins with ``.``, ``/`` or ``~``, or lies in a folder that is here, never asks the
    network.

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
    # checkpoints/tpyo is a mistake about this folder, and no hub's business.
    is_here = (folder.parent / ".").is_dir() and folder.parent != Path(".")
    if name[:1] in "./~" or is_here or not _HUB_ID.fullmatch(name):
        raise UsageError(f"{name}: no such model folder, and not a hub id of the form owner/name")
    return _download(name)


def name_of(path: str | Path) -> str:
    """A model's name, for the folders of its runs: the last part of its path or hub id."""
    folder = Path(path).expanduser()
    return folder.resolve().name if folder.is_dir() else folder.name


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, "pytorch_model*"]))
        return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{name}: no such folder here, and the hub did not give it (no network, no such model, "
            f"or it needs a login): {reason}"
        ) from None


# --- The MLX form of a PyTorch checkpoint, converted when it is first asked for.


_SUFFIXES = (".json", ".pt", ".bin", ".safetensors", ".model", ".txt", ".jinja")


def needs_conversion(folder: Path) -> bool:
    """Whether a model folder has to be converted before a run can start from it.

    Either MLX can't read it, or the way back to PyTorch would be lost.

    Raises:
        UsageError: If the folder says of itself what can't be read.
    """
    kind = kind_of(folder)
    if kind in (Kind.COURSE, Kind.COURSE_BASE):
        return True
    if kind is Kind.HUGGING_FACE and (folder / "config.json").is_file():
        # With no rule for its names, only what a conversion records leads back to PyTorch.
        config = read_config(folder)
        is_quantised = "quantization" in config or "quantization_config" in config
        if config.get("model_type") not in RULES and not is_quantised:
            return True
    has_safetensors = any(folder.glob("model*.safetensors"))
    return not has_safetensors and weight_files(folder)[1] != "safetensors"


def converted_once(folder: Path, store: Path) -> Path:
    """The MLX folder of a checkpoint inside `store`; another content is another entry.

    Args:
        folder: A folder for which `needs_conversion` holds; only read.
        store: A folder of converted checkpoints, made if it is not there.

    Raises:
        UsageError: If the checkpoint is not as it must be.
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
    for place in (folder, folder / "hf_model", folder / "hf_tokenizer"):
        if place.is_dir():
            yield from sorted(f for f in place.iterdir() if f.suffix in _SUFFIXES and f.is_file())
    if kind_of(folder) is Kind.COURSE:
        yield tokenizer_file(folder, read_json(folder / MANIFEST))
