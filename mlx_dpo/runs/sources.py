"""Where the pairs of a run are: a file, a folder of files, or a data set of the hub."""

from functools import cache
from pathlib import Path

from mlx_dpo.errors import UsageError
from mlx_dpo.paths import check_ordinary

_ENDINGS = (".jsonl", ".json")
_TRAIN = ("train",)
_VALID = ("valid", "validation")
_INSIDE = (".", "data")  # where in a folder the files lie


def data_files(data: str) -> tuple[str, str | None]:
    """The training file of what ``--data`` names, and the held-out file beside it, if any.

    Args:
        data: A file; a folder with ``train.jsonl`` and perhaps ``valid.jsonl``, by themselves or
            in ``data/``; or the hub id of a data set that has them.

    Raises:
        UsageError: If a folder has no such file, or one that is a pipe or a device, or the hub
            can't be reached.
    """
    path = Path(data).expanduser()
    if is_of_hub(data):
        folder = _download(data)
    elif path.is_dir():
        folder = path
    else:
        return data, None
    train = _find(folder, _TRAIN)
    if train is None:
        raise UsageError(
            f"{data}: holds no train.jsonl; other files become one by: "
            f"mlx_dpo data import {data} --out train.jsonl"
        )
    valid = _find(folder, _VALID)
    return str(train), None if valid is None else str(valid)


def kept_names(data: str) -> tuple[str, str | None]:
    """What settings keep of ``--data``, as ``data`` and ``eval_data``: its files, or its hub id.

    The id means the same on every machine, and after its download was deleted.

    Raises:
        UsageError: As for `data_files`.
    """
    train, valid = data_files(data)
    return (data, valid and data) if is_of_hub(data) else (train, valid)


def held_out_file(eval_data: str) -> str:
    """The file of what ``--eval-data`` names: a file, or the hub id of a data set that has one.

    Raises:
        UsageError: If the data set has none, or the hub can't be reached.
    """
    if not is_of_hub(eval_data):
        return eval_data
    _, valid = data_files(eval_data)
    if valid is None:
        raise UsageError(f"{eval_data}: holds no valid.jsonl; --eval-data takes a file too")
    return valid


def is_of_hub(name: str) -> bool:
    """Whether ``--data`` names a data set of the hub: no file or folder here, and a hub id."""
    parent = Path(name).parent
    if Path(name).expanduser().exists():
        return False
    if name.endswith(_ENDINGS) or (parent != Path(".") and parent.exists()):
        return False
    from mlx_dpo.models.hub import is_hub_id  # it imports MLX; a file needs none

    return is_hub_id(name)


@cache  # a data set that is changed meanwhile stays what it was when the process first asked
def _download(name: str) -> Path:
    from mlx_dpo.models.hub import download

    names = [f"{stem}{ending}" for stem in (*_TRAIN, *_VALID) for ending in _ENDINGS]
    return download(name, [*names, *(f"data/{each}" for each in names)], "dataset")


def _find(folder: Path, stems: tuple[str, ...]) -> Path | None:
    places = [
        folder / inside / f"{stem}{ending}"
        for inside in _INSIDE
        for stem in stems
        for ending in _ENDINGS
    ]
    for place in places:
        check_ordinary(place)
    return next((place for place in places if place.is_file()), None)
