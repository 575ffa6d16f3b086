"""What a command left on the disk: compared with what it makes when nobody disturbs it."""

import hashlib
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path

from mlx_dpo.files import is_leftover

Tree = dict[str, str]  # sha256 of each file, by its path below a folder; of a folder without files


def tree(folder: Path) -> Tree:
    """All files below a folder, and the folders that hold none."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not any(path.iterdir()):
            found[f"{name}/"] = "empty"
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary names below a folder, ours and those of `tempfile`."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if is_leftover(path.name)
        or (path.name.startswith(".") and path.is_dir() and not _is_cache(path))
    )


def _is_cache(folder: Path) -> bool:
    return folder.parent.name == "runs"


def different(found: Tree, expected: Tree, ignored: Collection[str] = ()) -> str:
    """How a tree differs from the one expected, in words; empty if it does not.

    Args:
        found: The tree.
        expected: What it is to be.
        ignored: Patterns of names whose bytes may differ; they are to be there all the same.
    """
    parts = []
    if more := sorted(found.keys() - expected.keys()):
        parts.append(f"also there: {', '.join(more)}")
    if fewer := sorted(expected.keys() - found.keys()):
        parts.append(f"missing: {', '.join(fewer)}")
    other = [
        name
        for name in sorted(found.keys() & expected.keys())
        if found[name] != expected[name] and not matches(name, ignored)
    ]
    if other:
        parts.append(f"other bytes: {', '.join(other)}")
    return "; ".join(parts)


def half_written(folder: Path, before: Tree, expected: Tree, grows: Collection[str]) -> str:
    """Files that are neither as before nor as they are to be, and are none that grow; in words."""
    wrong = [
        name
        for name, digest in tree(folder).items()
        if name in expected and digest not in (expected[name], before.get(name))
        if not matches(name, grows)
    ]
    return f"half written: {', '.join(wrong)}" if wrong else ""


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a name has one of the patterns, which end it."""
    return any(fnmatch(name, f"*{pattern}") for pattern in patterns)
