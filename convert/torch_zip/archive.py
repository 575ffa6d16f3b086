"""PyTorch's zip files, read and written without PyTorch.

`torch.save` writes a zip of stored members under one top folder: ``data.pkl`` holds the structure,
``data/0``, ``data/1``, ... the bytes of the tensors. Nothing in a file is trusted: the pickle goes
to `restricted_pickle`; names, sizes and checksums are checked here. The same content is always
written as the same bytes.
"""

import math
import re
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.torch_zip.restricted_pickle import MAX_BYTES, RefusedPickleError, read_pickle
from mlx_dpo.convert.torch_zip.tensors import (
    DTYPES,
    TENSOR_TYPES,
    BFloat16,
    Tensor,
    as_mlx,
    num_bytes,
    view,
)
from mlx_dpo.errors import UsageError, disk_error
from mlx_dpo.paths import check_ordinary

if TYPE_CHECKING:
    import mlx.core as mx

_MAX_MEMBERS = 65_000
_MAX_DIRECTORY = 16 * 2**20  # bytes of the list of members
_MAX_NAME = 300
_NAME = re.compile(r"[^/\\\x00-\x1f\x7f:]+")
_KEY = re.compile(r"[0-9]{1,9}")

_TOP = "archive"
_ALIGNMENT = 64
_STORAGE_OF = {dtype: name for name, dtype in DTYPES.items() if name != "BFloat16"}


def read_torch_zip(path: Path) -> Any:
    """Read a file of `torch.save`. Nothing in it is executed.

    Args:
        path: A file of plain data and tensors: a state dict, or a model of the course.

    Returns:
        Dicts, lists, tuples, numbers, texts, booleans and None; tensors as NumPy arrays, read
        only, or `BFloat16`. Tensors that share memory in the file share it here.

    Raises:
        UsageError: If the file is damaged, or holds anything else; the message is one line.
    """
    check_ordinary(path)
    try:
        _check_directory_size(path)
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive, path.stat().st_size).read()
    except (RefusedPickleError, _RefusedZipError) as error:
        raise UsageError(f"{path}: refused: {error}") from None
    except zipfile.BadZipFile as error:
        raise UsageError(
            f"{path}: not a whole zip file of torch.save ({error}); copy it again, or save it "
            "again with a current PyTorch"
        ) from None
    except (OSError, NotImplementedError, EOFError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable: {error}") from None


def read_state_dict(path: Path) -> "dict[str, mx.array]":
    """Read a file that holds one dict of named tensors, such as ``pytorch_model.bin``.

    Returns:
        Tensors by name, in the file's order.

    Raises:
        UsageError: As `read_torch_zip`, or if it holds anything but tensors.
    """
    content = read_torch_zip(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a dict of tensors, found a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, TENSOR_TYPES):
            raise UsageError(
                f"{path}: {name}: expected a tensor, found a {type(value).__name__}; give the "
                "model's state dict alone"
            )
    # Tied tensors share their memory in the file and are copied twice; many more would be a trap.
    total = sum(num_bytes(value) for value in content.values())
    if total > 2 * path.stat().st_size:
        raise UsageError(f"{path}: its tensors overlap: {total} bytes of them in a smaller file")
    return {name: as_mlx(value) for name, value in content.items()}


def write_torch_zip(path: Path, content: Any) -> None:
    """Write plain data and tensors as `torch.save` would, for ``weights_only=True``.

    Args:
        path: The file; it is overwritten.
        content: Dicts with text keys, lists, numbers, texts, booleans and None; tensors as NumPy
            arrays or `BFloat16`.

    Raises:
        DiskError: If it can't be written.
        TypeError: If there is anything else in `content`.
    """
    tensors: list[Tensor] = []
    pickled = b"\x80\x02" + _value(content, tensors) + b"."
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, "data.pkl", pickled)
            _add(archive, "byteorder", b"little")
            for number, tensor in enumerate(tensors):
                values = tensor.bits if isinstance(tensor, BFloat16) else tensor
                _add(archive, f"data/{number}", values.tobytes())
            _add(archive, "version", b"3\n")
    except OSError as error:
        raise disk_error(path, error) from None


class _RefusedZipError(ValueError):
    """A zip that `torch.save` does not write; the message is one line."""


class _Reader:
    """One file's members, checked before any is read, and the storages read so far."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS:
            raise _RefusedZipError(f"it has {len(members)} members, more than {_MAX_MEMBERS}")
        for member in members:
            _check_member(member)
        self.members = {member.orig_filename: member for member in members}
        if len(self.members) != len(members):
            raise _RefusedZipError("two members have the same name")
        # Members that lie over each other would make much memory of a small file.
        if sum(member.file_size for member in members) > size:
            raise _RefusedZipError("its members are larger than the file")
        self.top = self._find_top()
        self.storages: dict[str, npt.NDArray[Any]] = {}

    def read(self) -> Any:
        order = self.members.get(f"{self.top}/byteorder")
        if order is not None and self._bytes(order) != b"little":
            raise _RefusedZipError("its numbers are not little-endian")
        pickled = self.members[f"{self.top}/data.pkl"]
        if pickled.file_size > MAX_BYTES:
            raise _RefusedZipError(
                f"its pickle has {pickled.file_size} bytes, more than {MAX_BYTES}"
            )
        return read_pickle(self._bytes(pickled), self._storage, _tensor)

    def _find_top(self) -> str:
        pickles = [name for name in self.members if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise _RefusedZipError(f"expected one data.pkl in a top folder, found {len(pickles)}")
        top = pickles[0].removesuffix("/data.pkl")
        for name in self.members:
            if not name.startswith(f"{top}/"):
                raise _RefusedZipError(f"member {name!r:.100} lies outside the top folder {top!r}")
        return top

    def _storage(self, kind: str, key: str, count: int) -> tuple[str, npt.NDArray[Any]]:
        """A storage's numbers, one-dimensional; the same key gives the same memory."""
        member = self.members.get(f"{self.top}/data/{key}") if _KEY.fullmatch(key) else None
        if member is None:
            raise RefusedPickleError(f"the storage {key!r:.100} is missing")
        dtype = DTYPES[kind]
        if member.file_size != count * dtype.itemsize:
            raise RefusedPickleError(
                f"storage {key}: expected {count * dtype.itemsize} bytes for {count} x {kind}, "
                f"found {member.file_size}"
            )
        if key not in self.storages:
            raw = np.frombuffer(self._bytes(member), dtype)
            if kind == "Bool" and raw.view(np.uint8).max(initial=0) > 1:
                raise RefusedPickleError(f"storage {key}: a boolean that is neither 0 nor 1")
            self.storages[key] = raw
        if self.storages[key].dtype != dtype:
            raise RefusedPickleError(f"storage {key}: used with two dtypes")
        return kind, self.storages[key]

    def _bytes(self, member: zipfile.ZipInfo) -> bytes:
        # zipfile compares the checksum and the name beside the data.
        data = self.archive.read(member)
        if len(data) != member.file_size:
            raise _RefusedZipError(f"member {member.filename} is cut off")
        return data


def _check_directory_size(path: Path) -> None:
    """Refuse a long list of members before `zipfile` makes objects of it.

    A file ends with a record of 22 bytes. Before it, in PyTorch's files, lie a record of 56 bytes
    with 64-bit numbers and a pointer of 20 bytes to that.
    """
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - 98))
        tail = file.read().rjust(98, b"\0")
    large, pointer, end = tail[:56], tail[56:76], tail[76:]
    if end[:4] != b"PK\5\6":
        raise zipfile.BadZipFile("its end is not that of a zip file")
    size = int.from_bytes(end[12:16], "little")
    if pointer[:4] == b"PK\6\7":
        if large[:4] != b"PK\6\6":
            raise zipfile.BadZipFile("its end points to a record that is not there")
        size = int.from_bytes(large[40:48], "little")
    if size > _MAX_DIRECTORY:
        raise _RefusedZipError(f"its list of members has {size} bytes")


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.orig_filename
    parts = name.split("/")
    if len(name) > _MAX_NAME or any(not _NAME.fullmatch(p) or p in (".", "..") for p in parts):
        raise _RefusedZipError(f"the member name {name!r:.100} is not one torch.save writes")
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        raise _RefusedZipError(f"member {name!r:.100} is compressed; torch.save only stores")
    if member.flag_bits & 0x1:
        raise _RefusedZipError(f"member {name!r:.100} is encrypted")


def _tensor(
    storage: tuple[str, npt.NDArray[Any]],
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> Tensor:
    try:
        return view(*storage, offset, shape, strides)
    except ValueError as error:
        raise RefusedPickleError(str(error)) from None


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    info = zipfile.ZipInfo(f"{_TOP}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system = 0
    # PyTorch maps files into memory, for which a tensor's bytes begin at a multiple of 64. The
    # 30 bytes are the zip's own header before the name, the 4 those of the padding's field.
    assert archive.fp is not None
    padding = -(archive.fp.tell() + 30 + len(info.filename) + 4) % _ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    archive.writestr(info, data)


def _value(value: Any, tensors: list[Tensor]) -> bytes:
    """A value as opcodes of pickle protocol 2; its tensors are appended to `tensors`."""
    if isinstance(value, dict):
        items = (_text(key) + _value(item, tensors) for key, item in value.items())
        return b"}(" + b"".join(items) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(_value(item, tensors) for item in value) + b"e"
    if isinstance(value, TENSOR_TYPES):
        tensors.append(value)
        return _tensor_record(value, len(tensors) - 1)
    if isinstance(value, str):
        return _text(value)
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    raise TypeError(f"a {type(value).__name__} can't be written to a torch file")


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"a dict key must be text, got {type(value).__name__}")
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _sizes(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _tensor_record(tensor: Tensor, number: int) -> bytes:
    """The call by which `torch.save` describes a tensor; its bytes lie in ``data/<number>``."""
    kind = "BFloat16" if isinstance(tensor, BFloat16) else _STORAGE_OF.get(tensor.dtype)
    if kind is None:
        raise TypeError(f"{tensor} is of a dtype PyTorch files don't have")
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    storage = _text("storage") + f"ctorch\n{kind}Storage\n".encode() + _text(str(number))
    storage += _text("cpu") + _integer(math.prod(tensor.shape))
    arguments = b"(" + storage + b"tQ" + _integer(0) + _sizes(tensor.shape) + _sizes(strides)
    arguments += b"\x89"  # it needs no gradient
    arguments += b"ccollections\nOrderedDict\n)R"  # and has no hooks
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
