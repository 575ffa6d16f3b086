"""The weights of a model folder: files checked and read, written in shards, dtypes cast."""

import importlib.util
import re
import typing
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_dpo.convert.hf.names import BUFFERS
from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.models.config import read_json
from mlx_dpo.models.parameters import read_header
from mlx_dpo.models.shards import save_shards
from mlx_dpo.paths import inside

MAX_SHARD_BYTES = 5 * 10**9

# Says who wrote a file, so that --overwrite never replaces somebody else's folder.
MADE_BY = {"made_by": "mlx_dpo"}

DTYPES = {
    **{"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "BOOL": mx.bool_},
    **{"I8": mx.int8, "I16": mx.int16, "I32": mx.int32, "I64": mx.int64},
    **{"U8": mx.uint8, "U16": mx.uint16, "U32": mx.uint32, "U64": mx.uint64},
}
FLOAT_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


class Stored(NamedTuple):
    """Tensors of a folder.

    Attributes:
        arrays: By name; read from the file when they are first used.
        kind: ``safetensors`` or ``pytorch``.
    """

    arrays: dict[str, mx.array]
    kind: str


def read_weights(folder: Path) -> Stored:
    """All tensors of a folder: safetensors where there are any, else PyTorch's own files.

    Raises:
        UsageError: If there are none, or a file is damaged or lies outside the folder.
    """
    files, kind, index = weight_files(folder)
    arrays: dict[str, mx.array] = {}
    for file in files:
        part = _read_safetensors(file) if kind == "safetensors" else _read_bin(file)
        twice = sorted(arrays.keys() & part.keys())
        if twice:
            raise UsageError(
                f"{file}: holds {twice[0]}, which another file of the folder holds too"
            )
        wrong = [name for name in part if index and index.get(name) != file.name]
        if wrong:
            raise UsageError(f"{file}: holds {wrong[0]}, which the index does not place there")
        arrays |= part
    missing = sorted(index.keys() - arrays.keys())
    if missing:
        raise UsageError(
            f"{folder}: the index names {missing[0]}, and {index[missing[0]]} has none"
        )
    return Stored(arrays, kind)


def weight_files(folder: Path) -> tuple[list[Path], str, dict[str, str]]:
    """The weight files of a folder, in the order in which transformers looks for them.

    Returns:
        The files, ``safetensors`` or ``pytorch``, and the index if there is one: tensor to file.

    Raises:
        UsageError: If there are none, or the index is broken or points outside the folder.
    """
    for stem, kind in (("model.safetensors", "safetensors"), ("pytorch_model.bin", "pytorch")):
        if (folder / stem).exists():
            return [inside(folder, stem)], kind, {}
        index = folder / f"{stem}.index.json"
        if index.exists():
            entries = _read_index(index)
            return [inside(folder, n) for n in sorted(set(entries.values()))], kind, entries
        if kind == "safetensors" and (parts := sorted(folder.glob("model*.safetensors"))):
            return [inside(folder, part.name) for part in parts], kind, {}
    raise UsageError(f"{folder}: no model.safetensors or pytorch_model.bin in it, whole or sharded")


def write_weights(
    arrays: dict[str, mx.array], folder: Path, file_format: str, max_shard_bytes: int
) -> None:
    """Write safetensors, in several files with an index where one would pass a size.

    Args:
        arrays: Tensors by name.
        folder: An existing folder without weights.
        file_format: ``mlx`` or ``pt``, for the metadata.
        max_shard_bytes: Largest file, unless a single tensor is larger.
    """
    metadata = {"format": file_format, **MADE_BY}
    save_shards(folder, dict(arrays), metadata, max_bytes=max_shard_bytes)


def cast(arrays: Mapping[str, mx.array], dtype: mx.Dtype | None) -> dict[str, mx.array]:
    """Parameters in another float dtype; integers, buffers and dtype None stay as they are.

    Raises:
        UsageError: If a value is too large for the dtype.
    """
    if dtype is None:
        return dict(arrays)
    result = dict(arrays)
    for name, value in arrays.items():
        if _is_parameter(name, value):
            result[name] = value.astype(dtype)
            if dtype == mx.float16 and not mx.isfinite(result[name]).all().item():
                raise UsageError(f"{name}: holds values too large for float16; bfloat16 has room")
    return result


def with_dtype(config: dict[str, Any], arrays: Mapping[str, mx.array]) -> dict[str, Any]:
    """A config that names the dtype its weights have, where it names one and they have one."""
    names = dtype_names(arrays)
    if len(names) != 1:
        return config
    return config | {key: names[0] for key in ("torch_dtype", "dtype") if key in config}


def dtype_names(arrays: Mapping[str, mx.array]) -> list[str]:
    """Names of the float dtypes that parameters have."""
    dtypes = {value.dtype for name, value in arrays.items() if _is_parameter(name, value)}
    return sorted(str(dtype).removeprefix("mlx.core.") for dtype in dtypes)


def num_parameters(arrays: Mapping[str, mx.array]) -> int:
    """How many numbers the parameters hold."""
    return sum(value.size for name, value in arrays.items() if _is_parameter(name, value))


def largest_change(before: mx.array, after: mx.array) -> float:
    """Largest absolute difference of two tensors of one shape; 0 where they are empty."""
    if not before.size:
        return 0.0
    return float(np.array(mx.abs(after.astype(mx.float32) - before.astype(mx.float32)).max()))


def _is_parameter(name: str, value: mx.array) -> bool:
    return mx.issubdtype(value.dtype, mx.floating) and not BUFFERS.search(name)


def _read_index(path: Path) -> dict[str, str]:
    try:
        files = {str(name): str(file) for name, file in read_json(path)["weight_map"].items()}
    except (KeyError, AttributeError):
        raise UsageError(f"{path}: not readable as an index with a weight_map") from None
    for file in files.values():
        if not re.fullmatch(r"\w[\w.-]*", file):
            raise UsageError(f"{path}: {file!r} is not a file name in this folder")
    if not files:
        raise UsageError(f"{path}: names no tensor")
    return files


def _read_safetensors(file: Path) -> dict[str, mx.array]:
    for name, (_, code) in read_header(file).tensors.items():
        if code not in DTYPES:
            raise UsageError(
                f"{file}: {name} is stored as {code}; expected float32, float16 or bfloat16"
            )
    try:
        return typing.cast("dict[str, mx.array]", mx.load(str(file)))
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{file}: not a valid safetensors file: {one_line(error)}") from None


def _read_bin(file: Path) -> dict[str, mx.array]:
    from mlx_dpo.convert.torch_zip.archive import read_state_dict

    if zipfile.is_zipfile(file) or importlib.util.find_spec("torch") is None:
        arrays = read_state_dict(file)
    else:  # PyTorch's format before 1.6; a zip that was refused above stays refused
        arrays = _read_with_torch(file)
    for name, value in arrays.items():
        if value.dtype not in DTYPES.values():
            kind = str(value.dtype).removeprefix("mlx.core.")
            raise UsageError(
                f"{file}: {name} is {kind}; expected float32, float16 or bfloat16: store the model "
                "as float32 first"
            )
    return arrays


def _read_with_torch(file: Path) -> dict[str, mx.array]:
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        return {str(name): _from_torch(value) for name, value in content.items()}
    except Exception as error:  # the restricted unpickler raises many kinds
        raise UsageError(f"{file}: not readable by torch.load: {one_line(error)}") from None


def _from_torch(value: Any) -> mx.array:
    import torch

    if value.dtype == torch.bfloat16:
        return mx.array(value.contiguous().view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(value.contiguous().numpy())
