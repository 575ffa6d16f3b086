"""``convert.json``: what a converted model needs for the way back, stored beside its weights."""

import base64
import json
import math
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.convert.hf.names import BUFFERS
from mlx_dpo.convert.weights import DTYPES
from mlx_dpo.errors import UsageError
from mlx_dpo.models.config import read_json
from mlx_dpo.models.dialects import names_embedding
from mlx_dpo.models.parameters import as_bits

FILE = "convert.json"
_FORMAT = 1
_MAX_PACKED = 64 * 2**10  # bytes of a packed buffer: a causal mask of 2048 x 2048 takes 8 kB
_MAX_BUFFER = 2**27  # bytes of an unpacked buffer
_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Record:
    """The source of an MLX folder that was a Hugging Face folder.

    Attributes:
        weights: ``safetensors`` or ``pytorch``: what the source's files were.
        config: Its config.json, as it was.
        tensors: Its tensors in order: name to dtype code and shape.
        same_as: Tensors that repeat another: name to that other name.
        buffers: Tensors the model computes for itself: name to index in `packed`.
        packed: The different buffers, compressed.
        left_out: Tensors the MLX model does not use; there is a way back only without any.
        course: ``config`` and ``manifest`` of the course artifact around the folder, if any.
    """

    weights: str
    config: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    same_as: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, int] = field(default_factory=dict)
    packed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    course: dict[str, Any] | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the source's tensors."""
        return {name: shape for name, (_, shape) in self.tensors.items()}

    def add_buffer(self, name: str, value: mx.array) -> None:
        """Pack a tensor; one too large to pack is recorded as left out."""
        packed = base64.b64encode(zlib.compress(np.array(as_bits(value)).tobytes(), 9)).decode()
        if len(packed) > _MAX_PACKED or value.nbytes > _MAX_BUFFER:
            self.left_out.append(name)
            return
        if packed not in self.packed:
            self.packed.append(packed)
        self.buffers[name] = self.packed.index(packed)

    def buffer(self, name: str) -> mx.array:
        """A packed tensor as it was.

        Raises:
            UsageError: If the packed bytes are damaged or of another size.
        """
        code, shape = self.tensors[name]
        dtype = DTYPES[code]
        size = math.prod(shape) * dtype.size
        try:
            unpack = zlib.decompressobj()
            # The size that is due, and one byte that shows whether there would be more.
            data = unpack.decompress(base64.b64decode(self.packed[self.buffers[name]]), size + 1)
        except (ValueError, IndexError, zlib.error):
            data = b""
        if len(data) != size:
            raise UsageError(f"{FILE}: {name}: its packed form is not {size} bytes")
        flat = mx.array(np.frombuffer(data, np.uint8))
        return flat.view(dtype).reshape(shape) if size else mx.zeros(shape, dtype)

    def write(self, folder: Path) -> None:
        """Write convert.json."""
        content = {"format": _FORMAT, "source": {"kind": "huggingface"}, **asdict(self)}
        (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def describe(arrays: dict[str, mx.array]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, dtypes and shapes of tensors, as a record holds them."""
    return {name: (_CODES[value.dtype], tuple(value.shape)) for name, value in arrays.items()}


def source_kind(folder: Path) -> str | None:
    """What a folder was converted from: ``huggingface``, another kind, or None if not recorded.

    Raises:
        UsageError: If its convert.json can't be read.
    """
    if not (folder / FILE).exists():
        return None
    try:
        return str(read_json(folder / FILE)["source"]["kind"])
    except (KeyError, TypeError):
        raise UsageError(f"{folder / FILE}: does not say what it was converted from") from None


def read_record(folder: Path) -> Record:
    """The record of a folder that was converted from Hugging Face's format.

    Raises:
        UsageError: If it is damaged or of a later format.
    """
    path = folder / FILE
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise UsageError(f"{path}: expected format {_FORMAT}, found {content.get('format')!r}")
    try:
        course = content["course"]
        record = Record(
            weights=str(content["weights"]),
            config=dict(content["config"]),
            tensors={n: (c, tuple(map(int, s))) for n, (c, s) in content["tensors"].items()},
            same_as={str(k): str(v) for k, v in content["same_as"].items()},
            buffers={str(k): int(v) for k, v in content["buffers"].items()},
            packed=[str(item) for item in content["packed"]],
            left_out=[str(item) for item in content["left_out"]],
            course=None if course is None else {k: dict(course[k]) for k in ("config", "manifest")},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(f"{path}: damaged; without it known architectures convert too") from None
    _check(record, path)
    return record


def _check(record: Record, path: Path) -> None:
    for name, (code, shape) in record.tensors.items():
        limit = _MAX_BUFFER if name in record.buffers else 2**40
        sizes_fit = all(0 <= size < 2**31 for size in shape)
        if code not in DTYPES or not sizes_fit or math.prod(shape) >= limit:
            raise UsageError(f"{path}: {name}: {code} {list(shape)} is no tensor")
    for name in [*record.same_as, *record.same_as.values(), *record.buffers, *record.left_out]:
        if name not in record.tensors:
            raise UsageError(f"{path}: {name} is not among its tensors")
    # A record may add only tensors that a model holds twice or computes for itself.
    added = [name for name in record.buffers if not BUFFERS.search(name)]
    added += [name for name, other in record.same_as.items() if not names_embedding(other)]
    if added:
        raise UsageError(f"{path}: {added[0]} is a weight, and those lie in the weight files")
    forbidden = {"model_file", "quantization", "quantization_config"} & record.config.keys()
    if forbidden:
        raise UsageError(f"{path}: {sorted(forbidden)[0]} in its config is never written")
