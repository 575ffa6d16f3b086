"""Names and files that come from others: ordinary ones, inside their folder, text in UTF-8."""

import codecs
import errno
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from mlx_dpo.errors import MlxDpoError, UsageError


def flaw_of_name(name: str | os.PathLike[str]) -> str | None:
    """Why no file or folder can have this name, there or not there yet; None where one can."""
    if not os.fspath(name):
        return "the name is empty"
    try:
        os.lstat(name)
        check_ordinary(Path(name))
    except UsageError:
        return "a pipe, socket or device has this name; an ordinary file is needed"
    except UnicodeEncodeError:
        return "half of a surrogate pair can't be in a name"
    except ValueError:
        return "a zero byte can't be in a name"
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return f"{len(os.fspath(name))} characters are too long for a name"
    return None


def is_system_file(name: str) -> bool:
    """Whether macOS puts files of this name into folders by itself."""
    return name in (".DS_Store", ".localized", "Icon\r") or name.startswith("._")


def entries_of(folder: Path) -> list[Path]:
    """Files and folders in a folder, but for those of the system."""
    return [entry for entry in folder.iterdir() if not is_system_file(entry.name)]


def inside(folder: Path, name: str) -> Path:
    """A file of a folder, never one that lies elsewhere.

    Links are followed only within the folder or, in the hub's cache, where every file is a link,
    into the ``blobs`` of its own repository.

    Raises:
        UsageError: If it is not there or not inside.
    """
    path = folder / name
    if "/" in name or "\\" in name or not _stays_inside(path, folder.resolve()):
        raise UsageError(f"{folder}: {name!r} points outside the folder")
    if not path.is_file():
        raise UsageError(f"{folder}: {name} is missing")
    return path


def check_ordinary(path: Path) -> None:
    """Refuse what is neither file nor folder, before it is opened: reading a pipe may never end.

    Raises:
        UsageError: If it is a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # whoever opens it says why it can't
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UsageError(f"{path}: is a pipe, socket or device; an ordinary file is needed")


def text_of(path: Path, kind: type[MlxDpoError] = UsageError) -> str:
    """The text of an ordinary file in UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        kind: What to raise where it is in another encoding.

    Raises:
        OSError: If it can't be read.
        UsageError: If it is a pipe, a socket or a device.
    """
    check_ordinary(path)
    check_encoding(path, path, kind)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise kind(
            f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
        ) from None


_UNPACK = "unpack it first (gzip alone is read by `mlx_dpo data import`, as NAME.gz)"
_TABLE = "save it as CSV in UTF-8"
_NO_TEXT = {  # by the end of the name and the first bytes
    ".xlsx": (b"", "a spreadsheet", _TABLE),
    ".xls": (b"\xd0\xcf\x11\xe0", "a spreadsheet", _TABLE),
    ".ods": (b"", "a spreadsheet", _TABLE),
    ".zst": (b"\x28\xb5\x2f\xfd", "packed by zstd", _UNPACK),
    ".bz2": (b"BZh", "packed by bzip2", _UNPACK),
    ".xz": (b"\xfd7zXZ", "packed by xz", _UNPACK),
    ".zip": (b"PK\x03\x04", "packed by zip", _UNPACK),
    ".7z": (b"7z\xbc\xaf", "packed by 7-Zip", _UNPACK),
    ".gz": (b"\x1f\x8b", "packed by gzip", _UNPACK),
    ".lz4": (b"\x04\x22\x4d\x18", "packed by lz4", _UNPACK),
    ".tar": (b"", "a tar archive", _UNPACK),
    ".tgz": (b"", "a tar archive", _UNPACK),
}


def check_is_text(path: Path, name: Path, kind: type[MlxDpoError]) -> None:
    """Refuse packed files and spreadsheets, which their name or first bytes show.

    Args:
        path: The file.
        name: What a message calls it.
        kind: What to raise.

    Raises:
        OSError: If it can't be read.
    """
    with path.open("rb") as file:
        begin = file.read(8)
    known = _NO_TEXT.get(path.suffix.lower())
    for mark, what, way_out in [known] if known else _NO_TEXT.values():
        if known or (mark and begin.startswith(mark)):
            raise kind(f"{name}: is {what}; {way_out}")


def check_encoding(path: Path, name: Path, kind: type[MlxDpoError]) -> None:
    """Refuse a text file in UTF-16 or UTF-32, which its first bytes show with or without a mark.

    Packed files and spreadsheets are refused as by `check_is_text`.

    Args:
        path: The file.
        name: What a message calls it.
        kind: What to raise.

    Raises:
        OSError: If it can't be read.
    """
    with path.open("rb") as file:
        begin = file.read(4)
    check_is_text(path, name, kind)
    marks = {codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE}
    if begin in marks or begin.count(0) == 3:
        found = "UTF-32"
    elif begin[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or begin[:2].count(0) == 1:
        found = "UTF-16"
    else:
        return
    raise kind(f"{name}:1: the file is {found}, not UTF-8; save it as UTF-8")


def check_links(folder: Path) -> None:
    """Refuse a folder with a link that leads out of it, a pipe or a device, whoever would open it.

    Raises:
        UsageError: If there is one.
    """
    real = folder.resolve()
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: not readable: {error.strerror}") from None
    for entry in entries:
        check_ordinary(entry)
    for link in (entry for entry in entries if entry.is_symlink()):
        if not _stays_inside(link, real):
            raise UsageError(f"{folder}: {link.name!r} points outside the folder")


def check_target(
    target: Path,
    sources: Iterable[Path],
    *,
    overwrite: bool,
    is_ours: Callable[[Path], bool],
    made_by: str,
    allowed_by: str = "pass --overwrite",
) -> None:
    """Refuse to write over or into what is only read, or over what may not be replaced.

    Args:
        target: The file or folder to come.
        sources: What it is made from.
        overwrite: Whether it may be there.
        is_ours: Whether what is there may be replaced.
        made_by: What makes such files or folders, for messages.
        allowed_by: What to do so that it may be there, for messages.

    Raises:
        UsageError: If it overlaps a source by whatever name, or is there and may not be replaced.
    """
    for source in sources:
        if overlap(target, source):
            raise UsageError(
                f"{target}: overlaps {source}, which is only read; choose another name"
            )
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise UsageError(f"{target}: exists; {allowed_by} to replace it, or choose another name")
    if target.is_symlink() or not is_ours(target):
        raise UsageError(f"{target}: exists and no {made_by} made it; choose another name")


def overlap(a: Path, b: Path) -> bool:
    """Whether two files or folders are one, or one would lie in the other; see `is_inside`."""
    a, b = a.resolve(), b.resolve()
    return is_inside(a, b) or is_inside(b, a)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is a folder or would lie in it, by whatever case it is spelled.

    Most Macs' volumes ignore case, and how accents are composed. What exists is compared as files,
    and names that do not exist yet without either: that two of them may differ by it elsewhere is
    not worth a risk.

    Args:
        path: Resolved; it may not exist.
        folder: The same.
    """
    existing, names = folder, list[str]()
    while not existing.exists():
        names.insert(0, _folded(existing.name))
        existing = existing.parent
    for part in (path, *path.parents):
        if part.exists() and part.samefile(existing):
            below = path.relative_to(part).parts
            return [_folded(name) for name in below[: len(names)]] == names
    return False


def _folded(name: str) -> str:
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def _stays_inside(path: Path, folder: Path) -> bool:
    try:
        real = path.resolve()
    except (OSError, RuntimeError, ValueError):  # a link to itself, a name with a zero byte
        return False
    above = (folder.parent, folder.parent.parent)  # of a snapshot, of a folder in one
    blobs = [
        each.parent / "blobs"
        for each in above
        if each.name == "snapshots" and each.parent.name.startswith("models--")
    ]
    return any(real.is_relative_to(place) for place in (folder, *blobs))
