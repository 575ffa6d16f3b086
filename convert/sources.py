"""Where a model comes from: a folder here, a name on the hub, or an adapter on one of them.

Checkpoints in PyTorch's own formats are converted when they are first asked for, and kept.
"""

import difflib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_dpo.convert.conversion import Kind, kind_of
from mlx_dpo.convert.course.checkpoint import is_course_folder, read_course_folder
from mlx_dpo.convert.hf.names import RULES
from mlx_dpo.convert.store import CONVERTED, converted_once
from mlx_dpo.convert.weights import weight_files
from mlx_dpo.errors import UsageError
from mlx_dpo.manifest import check_digests
from mlx_dpo.models.config import is_quantised, read_config, read_json
from mlx_dpo.models.hub import download, is_hub_id
from mlx_dpo.paths import check_links, check_ordinary, entries_of
from mlx_dpo.preferences.chat import is_date

if TYPE_CHECKING:
    import mlx.nn as nn

    from mlx_dpo.models.adapters import Part

RECORD = (
    "dpo.json"  # in a folder that a run made: from what model, on which data, with which settings
)

_WITHOUT_WEIGHTS = [
    *("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "LICENCE*", "NOTICE*"),
    "README.md",  # says the licence
]
_HUB_FILES = [*_WITHOUT_WEIGHTS, "model*.safetensors", "adapter*.safetensors"]


def load(path: str | Path) -> "tuple[nn.Module, Any]":
    """Load a model as float32 MLX arrays, with its tokenizer.

    Nothing is written into the current folder: a checkpoint that has to be converted is kept in
    ``$XDG_CACHE_HOME/mlx_dpo/converted`` (by default below ``~/.cache``).

    Args:
        path: A model folder in MLX or Hugging Face layout, a course artifact, a hub id
            ``owner/name``, or the folder of a trained adapter, whose base is loaded with it.

    Returns:
        An `mlx.nn.Module` called as ``model(ids, cache=None)``, and the tokenizer. A quantised
        model stays packed, and keeps its own dtype.

    Raises:
        UsageError: If it is not there or can't be loaded.
        DiskError: If the converted checkpoint can't be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    source = locate(path, store=cache / "mlx_dpo" / "converted")
    return load_source(source), load_tokenizer(source.folder)


class Source(NamedTuple):
    """A model on disk.

    Attributes:
        folder: In a form MLX reads.
        adapter: Folder of the adapter to put onto it; None for none.
        origin: The folder whose ``dpo.json`` describes the run that made the model.
    """

    folder: Path
    adapter: Path | None
    origin: Path


def locate(
    path: str | Path, adapter: str | Path | None = None, *, store: Path = CONVERTED
) -> Source:
    """Find a model and the adapter on it.

    Args:
        path: As in `load`.
        adapter: Folder of an adapter for it.
        store: Where a checkpoint that has to be converted is kept.

    Raises:
        UsageError: If one of them is not there, an adapter does not say what it was trained on, or
            two adapters are given.
        DiskError: If a converted checkpoint can't be written.
    """
    found = find(path)
    if not is_adapter(found):
        folder = converted_once(found, store) if needs_conversion(found) else found
        if adapter is None:
            return Source(folder, None, folder)
        of = find(adapter)
        if not is_adapter(of):
            raise UsageError(f"{adapter}: no adapter: no adapter_config.json in it")
        return Source(folder, of, of)
    if adapter is not None:
        raise UsageError(f"{path}: is an adapter itself; --model takes the model below --adapter")
    base = base_of(found)
    try:
        return Source(find_mlx(base, store), found, found)
    except UsageError as error:
        raise UsageError(
            f"{path}: is an adapter of {base}, which can't be used here ({error}); pass the model "
            "as --model and this folder as --adapter"
        ) from None


def read_record(folder: Path) -> dict[str, Any]:
    """The ``dpo.json`` of a folder that a run made; empty where there is none to read.

    Raises:
        UsageError: If it is a pipe, a socket or a device.
    """
    check_ordinary(folder / RECORD)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def date_of(folder: Path) -> str | None:
    """The date that the chat template was told in the run that made a folder; None if none was."""
    settings = read_record(folder).get("settings")
    date = settings.get("date") if isinstance(settings, dict) else None
    return date if isinstance(date, str) and is_date(date) else None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model; some trainers add the base's config.json."""
    models = ("model*.safetensors", "pytorch_model*")
    has_model = any(file for pattern in models for file in folder.glob(pattern))
    return (folder / "adapter_config.json").is_file() and not has_model


def base_of(adapter: Path) -> str:
    """The model that an adapter's ``dpo.json`` says it was trained on.

    Raises:
        UsageError: If it does not say.
    """
    name = None
    if (adapter / RECORD).is_file():
        origin = read_json(adapter / RECORD).get("trained_from")
        name = origin.get("model") if isinstance(origin, dict) else None
    if not isinstance(name, str):
        raise UsageError(
            f"{adapter}: is an adapter, and no {RECORD} in it names its model: pass the model as "
            f"--model and this folder as --adapter"
        )
    return name


def load_source(source: Source, dtype: str | None = None) -> "nn.Module":
    """The model of a source with its adapter on, which must have been trained on that very model.

    Raises:
        UsageError: If one of them can't be loaded, or the adapter is another model's.
    """
    return _with_adapter(source, lambda: load_model(source.folder, dtype))


def load_stored(source: Source) -> "nn.Module":
    """As `load_source`, every number of the model in the dtype it is stored in."""
    from mlx_dpo.models.folder import load_model as load_weights

    return _with_adapter(source, lambda: load_weights(source.folder, None))


def _with_adapter(source: Source, load: "Callable[[], nn.Module]") -> "nn.Module":
    if source.adapter is not None:
        check_base(source.adapter, source.folder)  # before there is a model in memory
    model = load()
    if source.adapter is not None:
        from mlx_dpo.convert.adapters import read_adapter
        from mlx_dpo.models.adapters import attach

        attach(model, read_adapter(source.adapter, model))
    return model


def adapter_to_train(name: str | Path, folder: Path, model: "nn.Module") -> "dict[str, Part]":
    """The adapter that training starts from.

    Args:
        name: Of its folder.
        folder: Of the model, with or without its weights.
        model: The model, or one of its shapes.

    Raises:
        UsageError: If it can't be read, is another model's, or can't train here.
    """
    from mlx_dpo.convert.adapters import read_adapter

    found = find(name)
    check_base(found, folder)
    adapter = read_adapter(found, model)
    if any(part.magnitude is not None for part in adapter.values()):
        raise UsageError(f"{name}: DoRA adapters can be evaluated and fused, not trained")
    return adapter


def check_base(adapter: Path, folder: Path) -> None:
    """Refuse an adapter on other weights than those its ``dpo.json`` names by their digest.

    A folder without weights can't be told.

    Raises:
        UsageError: If they differ.
    """
    from mlx_dpo.models.parameters import stored_digest

    if not (adapter / RECORD).is_file() or not any(folder.glob("model*.safetensors")):
        return  # made by others, or to be planned: only names and shapes tell
    origin = read_json(adapter / RECORD).get("trained_from")
    origin = origin if isinstance(origin, dict) else {}
    if "sha256" in origin and origin["sha256"] != stored_digest(folder):
        raise UsageError(
            f"{adapter}: was trained on {origin.get('model')} with other weights than those of "
            f"{folder}: it does not work with these; pass the model it was trained on as --model"
        )


def load_folder(folder: Path, dtype: str | None = None) -> "tuple[nn.Module, Any]":
    """Model and tokenizer of a folder from `find_mlx`; dtypes as in `load_model`."""
    return load_model(folder, dtype), load_tokenizer(folder)


def load_model(folder: Path, dtype: str | None = None) -> "nn.Module":
    """The model of a folder from `find_mlx`.

    Args:
        folder: In a form MLX reads.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None for float32, or a quantised model's
            own.
    """
    import mlx.core as mx

    from mlx_dpo.models.config import own_dtype
    from mlx_dpo.models.folder import load_model as load_weights

    if is_course_folder(folder):
        read_course_folder(folder)  # a record that does not fit is refused before the run
    if dtype is None:
        dtype = own_dtype(folder) if is_quantised(read_config(folder)) else "float32"
    return load_weights(folder, getattr(mx, dtype))


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model that `load` accepts, without its weights."""
    from mlx_dpo.models import tokenizer

    return tokenizer.load_tokenizer(locate(path).folder)


def find_mlx(path: str | Path, store: Path = CONVERTED, *, weights: bool = True) -> Path:
    """The folder of a model in a form MLX reads.

    Args:
        path: A folder or hub id.
        store: Where a checkpoint that has to be converted is kept.
        weights: Whether weights are needed: see `find`.

    Raises:
        UsageError: If there is no such model or it can't be converted.
        DiskError: If the converted checkpoint can't be written.
    """
    folder = find(path, weights=weights)
    if not weights and not _has_weights(folder):
        return folder
    return converted_once(folder, store) if needs_conversion(folder) else folder


def find(path: str | Path, *, weights: bool = True) -> Path:
    """The folder of a model; a hub id is downloaded unless the hub's cache holds it.

    Args:
        path: A folder or hub id.
        weights: Whether weights are needed. Without, they are not downloaded; where they are here
            already, they are here.

    Raises:
        UsageError: If there is no such folder and it can't be a hub id, the hub has none, or the
            folder holds a link that leads out, a pipe or a device, or a file that was changed since
            this program wrote it.
    """
    name = str(path)
    try:
        folder = Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{name}: no such user") from None
    if name and folder.is_dir():
        check_links(folder)
        if (folder / "config.toml").is_file() and not (folder / "config.json").is_file():
            raise UsageError(f"{name}: is the folder of a run{_result_of(folder)}")
        check_digests(folder, weights=weights)
        return folder
    if name and folder.exists():
        raise UsageError(f"{name}: is a file; a folder is expected")
    if not is_hub_id(name):
        near = difflib.get_close_matches(folder.name, _names_beside(folder), n=1)
        hint = f"; did you mean {folder.with_name(near[0])}?" if near else ""
        raise UsageError(f"{name}: no such model folder, and no hub id owner/name{hint}")
    downloaded = download(name, _HUB_FILES if weights else _WITHOUT_WEIGHTS)
    check_digests(downloaded, weights=weights)
    if not weights or any(downloaded.glob("model*.safetensors")) or is_adapter(downloaded):
        return downloaded
    return download(name, [*_HUB_FILES, "pytorch_model*"])


def _result_of(run: Path) -> str:
    """What to take in place of a run's folder: the model that the run wrote."""
    try:
        out = json.loads((run / "result.json").read_text(encoding="utf-8"))["out"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ", which has not finished"
    return f"; its model is {out}"


def _names_beside(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
    except OSError:
        return []


def _has_weights(folder: Path) -> bool:
    """Whether a folder is more than the config and tokenizer of a model."""
    kinds = (".safetensors", ".bin", ".pt")
    is_alone = (folder / "config.json").is_file()
    return not is_alone or any(file.suffix in kinds for file in entries_of(folder))


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
