"""Repositories of the Hugging Face hub: their names, and what is downloaded of them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mlx_dpo.errors import UsageError, disk_error, is_disk_fault, one_line

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file or folder here may be looked up on the hub.

    A path that begins with ``.``, ``/`` or ``~``, or lies in a folder that is here, may not: a
    typo in a path should not ask the network.
    """
    parent = Path(name).parent
    is_path = name[:1] in "./~" or (parent != Path(".") and (parent / ".").is_dir())
    return not is_path and _HUB_ID.fullmatch(name) is not None


def hub_id_of(path: Path) -> str | None:
    """The hub id of a model's folder or a data set's file in the hub's cache; None elsewhere."""
    # A file there is a link into its repository's blobs.
    real = path.expanduser().resolve()
    for place in real.parents:
        kind, *parts = place.parent.name.split("--", 2)
        is_model = kind == "models" and place.name == "snapshots" and place == real.parent
        if is_model or (kind == "datasets" and place.name in ("snapshots", "blobs")):
            name = "/".join(parts)
            return name if _HUB_ID.fullmatch(name) else None
    return None


def download(
    name: str, patterns: Sequence[str], kind: Literal["model", "dataset"] = "model"
) -> Path:
    """The folder of a hub repository in the hub's cache, downloaded where it is not there yet.

    Args:
        name: ``owner/name``.
        patterns: The files to download, as a shell would match them.
        kind: What the repository holds.

    Raises:
        UsageError: If the hub can't be reached or has no such repository.
        DiskError: If there is no room for the files.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=list(patterns)))
    except Exception as error:  # of the hub's client, its HTTP client (by version) or Xet
        if isinstance(error, OSError) and is_disk_fault(error):
            raise disk_error(error.filename or name, error, "not downloaded") from None
        raise UsageError(
            f"{name}: no such folder here, and the download from the hub failed (no network, no "
            f"such {kind}, or it needs a login): {one_line(error)}"
        ) from None
