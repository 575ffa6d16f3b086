"""Files for ``torch.load(path, weights_only=True)``: the same content gives the same bytes."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mlx_dpo.convert.torch_zip.tensors import DTYPES, TENSOR_TYPES, BFloat16, Tensor
from mlx_dpo.errors import DiskError

_TOP = "archive"
_ALIGNMENT = 64
_STORAGE_OF = {dtype: name for name, dtype in DTYPES.items() if name != "BFloat16"}


def write_torch_zip(path: Path, content: Any) -> None:
    """Write plain data and tensors as `torch.save` would.

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
        raise DiskError(f"{path}: not written: {error.strerror or error}") from None


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
        return _tensor(value, len(tensors) - 1)
    return _text(value) if isinstance(value, str) else _scalar(value)


def _scalar(value: Any) -> bytes:
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


def _sizes(values: list[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"


def _tensor(tensor: Tensor, number: int) -> bytes:
    """The call by which `torch.save` describes a tensor; its bytes lie in ``data/<number>``."""
    kind = "BFloat16" if isinstance(tensor, BFloat16) else _STORAGE_OF.get(tensor.dtype)
    if kind is None:
        raise TypeError(f"{tensor} is of a dtype PyTorch files don't have")
    strides = [int(np.prod(tensor.shape[axis + 1 :])) for axis in range(len(tensor.shape))]
    storage = b"".join(
        [
            _text("storage"),
            f"ctorch\n{kind}Storage\n".encode(),
            _text(str(number)),
            _text("cpu"),
            _integer(int(np.prod(tensor.shape))),
        ]
    )
    arguments = b"".join(
        [
            b"(" + storage + b"tQ",
            _integer(0),
            _sizes(list(tensor.shape)),
            _sizes(strides),
            b"\x89",  # it needs no gradient
            b"ccollections\nOrderedDict\n)R",  # and has no hooks
        ]
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"
