"""What a folder holds, to the byte, so that a later look notices one flipped bit.

A manifest has exactly one spelling: sorted keys, no spaces, one line. A bit that flips in the
manifest itself makes it another text, and so does anything it says that is not true.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from mlx_dpo.disk import NewFile

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
