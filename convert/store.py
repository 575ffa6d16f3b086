"""Converted checkpoints, kept for the runs that start from them.

An entry is a folder ``model`` beside a manifest of its bytes, named by all that decides what a
conversion makes of a checkpoint. It is compared with its manifest before it is used.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from mlx_dpo.convert.conversion import Kind, Options, convert, kind_of
from mlx_dpo.convert.course.artifact import MANIFEST, tokenizer_file
from mlx_dpo.errors import DiskError
from mlx_dpo.files import is_leftover, mark_used, new_folder, remove_folder
from mlx_dpo.manifest import find_damage, read_facts, write_manifest_of
from mlx_dpo.models.config import read_json
from mlx_dpo.models.export import companions
from mlx_dpo.models.tokenizer import NAMED_TEMPLATES
from mlx_dpo.paths import entries_of

CONVERTED = Path("runs/.converted")
CONVERSION_VERSION = "2"  # changes whenever a conversion writes other bytes

_SUFFIXES = (".json", ".pt", ".bin", ".safetensors", ".model", ".txt", ".jinja")
_found: dict[tuple[object, ...], Path] = {}  # entries that this process has compared, by `_state`


def converted_once(folder: Path, store: Path) -> Path:
    """The MLX folder of a checkpoint inside `store`; changed files make another entry.

    A damaged entry is made again. Of two processes that make the same one at once, the second takes
    the first's.

    Args:
        folder: A folder that has to be converted; only read.
        store: A folder of converted checkpoints, made if it is not there.

    Raises:
        UsageError: If the checkpoint can't be converted.
        DiskError: If the result can't be written.
    """
    state = _state(folder, store)
    found = _found.get(state)
    if found is not None and found.is_dir():
        mark_used(found.parent)
        return found
    key = _key(folder)
    out = store / f"{folder.resolve().name}-{key[:16]}"
    facts = {"key": key, "source": str(folder.resolve())}
    if find_damage(out, **facts) is None:
        mark_used(out)
    else:
        _make(folder, out, facts)
        _remove_others(out, facts["source"])
    _found[state] = out / "model"
    return out / "model"


def _make(folder: Path, out: Path, facts: dict[str, str]) -> None:
    if out.exists():  # damaged, by a hand or a disk
        remove_folder(out)
    try:
        with new_folder(out) as new:
            convert(folder, new / "model", Options(to="mlx", verify=False), lambda line: None)
            write_manifest_of(new, **facts)
    except DiskError:
        if find_damage(out, **facts) is not None:
            raise
        mark_used(out)  # another process has made it meanwhile


def _remove_others(entry: Path, source: str) -> None:
    """Delete entries of the same checkpoint under another key: of files or versions before."""
    for other in entry.parent.iterdir():
        if other == entry or is_leftover(other.name):  # which another run may be writing
            continue
        if read_facts(other).get("source") == source:
            with suppress(OSError):  # what can't be deleted only takes room
                remove_folder(other)


def _key(folder: Path) -> str:
    versions = (CONVERSION_VERSION, version("mlx"), version("mlx-lm"))
    digest = hashlib.sha256(" ".join(versions).encode())
    for file in _content(folder):
        digest.update(os.path.relpath(file, folder).encode())  # a course's tokenizer lies outside
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _state(folder: Path, store: Path) -> tuple[object, ...]:
    """What changes when a file of the checkpoint does, found without reading one."""
    stats = [(file, file.stat()) for file in _content(folder)]
    stamps = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    return (folder.resolve(), store.resolve(), *stamps)


def _content(folder: Path) -> Iterator[Path]:
    """The files that decide what a conversion makes of a folder."""
    folders = (folder, folder / "hf_model", folder / "hf_tokenizer")
    for part in (*folders, *(each / NAMED_TEMPLATES for each in folders)):
        if part.is_dir():
            files = {f for f in entries_of(part) if f.suffix in _SUFFIXES and f.is_file()}
            yield from sorted(files | {f for f in companions(part) if f.parent == part})
    if kind_of(folder) is Kind.COURSE:
        yield tokenizer_file(folder, read_json(folder / MANIFEST))
