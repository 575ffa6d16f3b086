"""Checksums of a folder's files, so that one flipped bit shows.

What only this program writes has a manifest: size and sha256 of each file, and no other file may be
there. It has exactly one spelling: sorted keys, no spaces, one line. A bit that flips in the
manifest itself makes another text, or a statement about the files that is not true.

A model's folder, which other programs read and people may add to, has digests: the sha256 of each
file but its README.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.files import NewFile
from mlx_dpo.paths import entries_of

MANIFEST = "MANIFEST.json"
DIGESTS = "digests.json"
FORMAT = 1
MAX_BYTES = 2**20  # of a manifest; a checkpoint's has a few hundred


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def digest(data: bytes) -> str:
    """sha256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_manifest(folder: Path, files: dict[str, NewFile], **facts: Any) -> bytes:
    """Write the manifest of a folder that holds exactly `files`.

    Args:
        folder: The folder.
        files: By name; their digests are of the bytes meant to be written, not of those on disk.
        facts: Further entries of the manifest; `find_damage` is called with the same.

    Returns:
        The manifest's bytes.

    Raises:
        OSError: If it can't be written.
    """
    entries = {name: {"bytes": f.size, "sha256": f.sha256} for name, f in files.items()}
    text = canonical({**facts, "files": entries, "format": FORMAT})
    with NewFile(folder / MANIFEST) as file:
        file.write(text)
    return text


def write_manifest_of(folder: Path, **facts: Any) -> None:
    """Write the manifest of a folder whose files were written by others, as they are on disk.

    Raises:
        OSError: If one can't be read, or it can't be written.
    """
    entries = {name: _entry(folder / name) for name in _names(folder)}
    with NewFile(folder / MANIFEST) as file:
        file.write(canonical({**facts, "files": entries, "format": FORMAT}))


def read_facts(folder: Path) -> dict[str, Any]:
    """What a folder's manifest says beside its files; empty where it has none that is sound."""
    try:
        value = json.loads((folder / MANIFEST).read_bytes())
        return {k: v for k, v in value.items() if k not in ("files", "format")}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def find_damage(folder: Path, **facts: Any) -> str | None:
    """What is wrong with a folder that has a manifest, in words; None if nothing is.

    Every byte of every file is read.

    Args:
        folder: A folder that `write_manifest` was called for.
        facts: What the manifest must say beside the files.
    """
    try:
        return _compare(folder, facts)
    except OSError as error:
        return f"{error.filename or folder} can't be read: {error.strerror or error}"


def write_digests(folder: Path) -> None:
    """Write the digests of a folder's files, as they are on disk; see `check_digests`.

    Raises:
        OSError: If one can't be read, or they can't be written.
    """
    (folder / DIGESTS).write_bytes(digests_of({name: folder / name for name in _names(folder)}))


def digests_of(contents: dict[str, Path | bytes]) -> bytes:
    """The digests of files, by their names in a folder: what `write_digests` writes there.

    Raises:
        OSError: If one can't be read.
    """
    digests = {
        name: digest(content) if isinstance(content, bytes) else _entry(content)["sha256"]
        for name, content in sorted(contents.items())
        if name not in (DIGESTS, "README.md")
    }
    return json.dumps(digests, indent=2).encode() + b"\n"


def check_digests(folder: Path, *, weights: bool = True) -> None:
    """Refuse a folder whose files are not those that its digests were written for.

    Without digests, and of files that they don't name, nothing is known. Every byte is read, once
    in a process unless the time of a file changes.

    Args:
        folder: A model's, or an adapter's.
        weights: Whether its weights are looked at too.

    Raises:
        UsageError: If a file was changed, or is gone.
    """
    if not (folder / DIGESTS).is_file():
        return
    name = _changed(folder, weights, _stamps(folder))
    if name is not None:
        what = "changed" if (folder / name).exists() else "gone"
        raise UsageError(
            f"{folder / name}: {what} since the folder was written; make or copy it again, or, if "
            f"that was you, delete {folder / DIGESTS}"
        )


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    files = {name: folder / name for name in _names(folder)}
    stats = {name: file.stat() for name, file in files.items() if file.exists()}
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in sorted(stats.items()))


@cache
def _changed(folder: Path, weights: bool, _: object) -> str | None:
    """The first file that is not as its digest says; None if there is none."""
    with (folder / DIGESTS).open("rb") as opened:
        text = opened.read(MAX_BYTES)
    try:
        digests: dict[str, str] = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return DIGESTS
    present = _names(folder)  # a name that leads out of the folder is none of them
    for name, sha256 in digests.items():
        if weights or not name.endswith(".safetensors"):
            file = folder / name
            if name not in present or not file.is_file() or _entry(file)["sha256"] != sha256:
                return name
    return None


def _compare(folder: Path, facts: dict[str, Any]) -> str | None:
    manifest = folder / MANIFEST
    if manifest.is_symlink() or not manifest.is_file():
        return f"{MANIFEST} is missing"
    with manifest.open("rb") as file:
        entries = _parse(file.read(MAX_BYTES), facts)
    if entries is None:
        return f"{MANIFEST} is not as it was written"
    present = _names(folder)
    for name in sorted(entries.keys() | present):
        if name not in present:
            return f"{name} is missing"
        if name not in entries:
            return f"{name} does not belong to it"
        if (difference := _difference(folder / name, entries[name])) is not None:
            return f"{name} {difference}"
    return None


def _parse(text: bytes, facts: dict[str, Any]) -> dict[str, Any] | None:
    """The entries of a manifest if `write_manifest` spells it so with these facts, else None."""
    try:
        value = json.loads(text)
        entries = value["files"]
        is_ours = canonical(value) == text
        is_ours &= value == {**facts, "files": entries, "format": FORMAT}
        is_ours &= all(entry.keys() == {"bytes", "sha256"} for entry in entries.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(entries) if is_ours else None


def _names(folder: Path) -> set[str]:
    """Files of a folder and of those below it, and folders without files, but for the manifest."""
    names = set()
    for entry in entries_of(folder):
        below = _names(entry) if entry.is_dir() and not entry.is_symlink() else set()
        names |= {f"{entry.name}/{name}" for name in below} or {entry.name}
    return names - {MANIFEST}


def _entry(file: Path) -> dict[str, Any]:
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": sha256}


def _difference(file: Path, entry: dict[str, Any]) -> str | None:
    if file.is_symlink() or not file.is_file():
        return "is not a file"
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"has {size} bytes, and {entry['bytes']} were written"
    if _entry(file) != entry:
        return "does not hold what was written (sha256 differs)"
    return None
