"""A GGUF file: written from a model tensor by tensor, and read back as a folder for MLX."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.gguf.families import Sizes, describe, family_of, turned, turned_back
from mlx_dpo.convert.gguf.package import package
from mlx_dpo.convert.gguf.positions import Floats
from mlx_dpo.convert.gguf.vocabulary import Vocabulary, read_vocabulary
from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.models.config import read_config
from mlx_dpo.models.export import SHARD_BYTES, config_of, read_files, write_companions, write_json
from mlx_dpo.models.fuse import Packing, fused, packing_entry
from mlx_dpo.models.parameters import as_bits
from mlx_dpo.models.shards import save_shards
from mlx_dpo.preferences.chat import ChatFormat

BITS = {"4": "Q4_0", "8": "Q8_0"}  # kinds of GGUF that the package packs, by bits of a weight

_MARK = "mlx_dpo.export"
# Names of models for which llama.cpp changes what tokens do, whatever the file says.
_TELLING = re.compile(r"phi-?3|jina|nomic|modern-?bert", re.IGNORECASE)
_BLOCK = 32  # weights that share a scale
_PLAIN = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_FILE_TYPES = {"Q4_0": "MOSTLY_Q4_0", "Q8_0": "MOSTLY_Q8_0", "F32": "ALL_F32"}
_QUERIES = re.compile(r"\.self_attn\.q_proj\.(weight|bias)$")
_KEYS = re.compile(r"\.self_attn\.k_proj\.(weight|bias)$")
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # these get 8 bits where others get 4

Advance = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """How a model goes into a file.

    Attributes:
        names: In the file, by the name of mlx-lm's parameter.
        kinds: Of `gguf.GGMLQuantizationType`, by the same.
        heads: By how many heads the rows of a parameter are turned, where they are.
        shifted: Parameters that the file holds with 1 added.
        dtype: Of what has 16 or 32 bits.
        kind: What most weights are.
    """

    names: dict[str, str]
    kinds: dict[str, Any]
    heads: dict[str, int]
    shifted: set[str]
    dtype: str
    kind: str

    @property
    def left_out(self) -> list[str]:
        """Matrices whose rows can't be packed where others are."""
        if self.kind in _PLAIN.values():
            return []
        return [name for name, kind in self.kinds.items() if kind.name == _PLAIN[self.dtype]]


def plan(model: nn.Module, folder: Path, dtype: str, bits: str | None) -> Plan:
    """Decide what each tensor of a model becomes.

    Args:
        model: With an adapter or without, packed or not.
        folder: It was loaded from.
        dtype: Of matrices that are not packed; vectors are float32, as llama.cpp wants them.
        bits: A key of `BITS`; None packs nothing.

    Raises:
        UsageError: If GGUF is not written of this model.
    """
    gguf = package()
    args: Any = model.args
    family = family_of(read_config(folder))
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.arch], args.num_hidden_layers)
    kind = _PLAIN[dtype] if bits is None else BITS[bits]
    sizes = Sizes.of(args)
    names, kinds, heads = {}, {}, {}
    shifted = set[str]()
    for name, array in fused(model, mx.float32).items():
        found = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UsageError(f"{folder}: GGUF has no tensor for {name}")
        names[name] = found
        own = "Q8_0" if kind == "Q4_0" and name in _TABLES else kind
        if array.ndim == 1:
            own = "F32"
        elif own not in _PLAIN.values() and array.shape[-1] % _BLOCK:
            own = _PLAIN[dtype]
        if family.is_shifted and name.endswith("norm.weight"):
            shifted.add(name)
        kinds[name] = gguf.GGMLQuantizationType[own]
        if family.is_turned and _QUERIES.search(name):
            heads[name] = sizes.heads
        elif family.is_turned and _KEYS.search(name):
            heads[name] = sizes.key_heads
    return Plan(names, kinds, heads, shifted, dtype, kind)


def write(
    file: Path,
    model: nn.Module,
    folder: Path,
    chat: ChatFormat,
    plan: Plan,
    progress: Advance = lambda name, total, more: None,
) -> Vocabulary:
    """Write a model with its tokenizer and chat template.

    Memory holds the model and one tensor.

    Args:
        file: The new file.
        model: As for `plan`.
        folder: It was loaded from; only read.
        chat: The conversation format of that.
        plan: Of the model.
        progress: Called with what is written, how many tensors it is, and how many more are done.

    Returns:
        What the file says of the tokenizer.

    Raises:
        UsageError: If GGUF can't say what the model or its tokenizer is, or a value does not fit.
        OSError: If the disk fails.
    """
    gguf = package()
    config = read_config(folder)
    arch = gguf.MODEL_ARCH[family_of(config).arch]
    rows = fused(model, mx.float32)[_TABLES[0]].shape[0]
    vocabulary = read_vocabulary(folder, chat, rows)
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[arch])
    try:
        writer.add_bool(_MARK, True)
        name = folder.resolve().name
        if vocabulary.is_stripping:
            writer.add_name(f"{name} (Phi-3)")
        elif not _TELLING.search(name):
            writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES.get(plan.kind, f"MOSTLY_{plan.kind}")])
        if plan.kind not in _PLAIN.values():
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        divisors = describe(writer, model, config, folder)
        vocabulary.add_to(writer)
        _write_tensors(writer, file, model, plan, divisors, progress)
    finally:
        writer.close()
    return vocabulary


def is_ours(file: Path) -> bool:
    """Whether `write` made a file."""
    try:
        with file.open("rb") as opened:
            start = opened.read(4096)
    except OSError:
        return False
    return start[:4] == b"GGUF" and _MARK.encode() in start


def _write_tensors(
    writer: Any,
    file: Path,
    model: nn.Module,
    plan: Plan,
    divisors: dict[str, Floats],
    progress: Advance,
) -> None:
    gguf = package()
    arrays = fused(model, mx.float32)
    for name, values in divisors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for name, array in arrays.items():
        kind = plan.kinds[name]
        shape = gguf.quant_shape_to_byte_shape(array.shape, kind)
        writer.add_tensor_info(plan.names[name], shape, np.uint8, int(np.prod(shape)), kind)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in divisors.values():
        writer.write_tensor_data(values)
    total = len(arrays)
    for name in list(arrays):
        values = np.array(arrays.pop(name))
        if name in plan.shifted:
            values = values + np.float32(1)
        if name in plan.heads:
            values = turned(values, plan.heads[name])
        with np.errstate(over="ignore"):
            packed = gguf.quants.quantize(values, plan.kinds[name])
        if packed.dtype == np.float16 and not np.isfinite(packed).all():
            raise UsageError(f"{name}: holds values too large for float16: see --dtype")
        writer.write_tensor_data(np.ascontiguousarray(packed).view(np.uint8))
        mx.clear_cache()
        progress("tensors", total, 1)


@dataclass(frozen=True)
class Check:
    """What a file holds, compared with the model it is of.

    Attributes:
        same: Tensors that are the model's bit by bit, or with the 1 that was added.
        rounded: Tensors of 16 bits that are the model's, rounded.
        packed: Tensors of fewer bits.
    """

    same: int
    rounded: int
    packed: int


def read_back(
    file: Path, model: nn.Module, source: Path, plan: Plan, folder: Path | None = None
) -> Check:
    """Read a file by the package's reader, and make it a folder for MLX, for `load_source`.

    Packed tensors become MLX's of the same values: 32 weights to a scale, in float32.

    Args:
        file: As from `write`.
        model: That it is of.
        source: Folder of the model, for its tokenizer and config.json.
        plan: Of the model.
        folder: An empty folder; None makes none.

    Raises:
        MlxDpoError: If a tensor that is not packed is not the model's, as its dtype rounds it.
        DiskError: If a file can't be written.
    """
    tensors = {each.name: each for each in package().GGUFReader(file).tensors}
    counts = {"same": 0, "rounded": 0, "packed": 0}
    arrays: dict[str, mx.array] = {}
    packings: dict[str, Packing] = {}
    of_model = fused(model, mx.float32)
    for name in list(of_model):
        expected = of_model.pop(name)  # computed here, and freed
        kind, data = plan.kinds[name].name, tensors[plan.names[name]].data
        if name in plan.heads:
            data = turned_back(data, plan.heads[name])
        if kind in BITS.values():
            path = name.removesuffix(".weight")
            counts["packed"] += 1
            packings[path], parts = _as_mlx(data, kind)
            found = {f"{path}.{part}": value for part, value in parts.items()}
        else:
            value, shift = _dense(data, kind, expected.shape), float(name in plan.shifted)
            counts[_compared(name, value, expected + shift if shift else expected, file)] += 1
            found = {name: value - shift if shift else value}
        arrays |= found if folder else {}
    if folder is not None:
        _save(arrays, packings, source, plan.dtype, folder)
    return Check(**counts)


def _save(
    arrays: dict[str, mx.array],
    packings: dict[str, Packing],
    source: Path,
    dtype: str,
    folder: Path,
) -> None:
    files = read_files(source)
    packing = packing_entry(packings) if packings else None
    write_companions(files.companions, folder)
    write_json(folder / "config.json", config_of(files.config, getattr(mx, dtype), packing))
    save_shards(folder, arrays, {"format": "mlx"}, max_bytes=SHARD_BYTES)


def _compared(name: str, found: mx.array, model: mx.array, file: Path) -> str:
    """Whether a tensor is ``same`` or ``rounded``."""
    if bool(mx.array_equal(as_bits(found.astype(mx.float32)), as_bits(model)).item()):
        return "same"
    if bool(mx.array_equal(as_bits(found), as_bits(model.astype(found.dtype))).item()):
        return "rounded"
    raise MlxDpoError(f"{file}: not written: {name} is read back as other numbers; report this")


def _dense(data: npt.NDArray[Any], kind: str, shape: tuple[int, ...]) -> mx.array:
    if kind == "BF16":
        bits = np.ascontiguousarray(data).view(np.uint16).reshape(shape)
        return mx.array(bits).view(mx.bfloat16)
    return mx.array(np.ascontiguousarray(data)).reshape(shape)


def _as_mlx(data: npt.NDArray[np.uint8], kind: str) -> tuple[Packing, dict[str, mx.array]]:
    """Blocks of GGUF as MLX packs weights: a scale (float16 in a block) and codes around zero."""
    bits = 4 if kind == "Q4_0" else 8
    blocks = data.reshape(data.shape[0], -1, 2 + _BLOCK * bits // 8)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    codes = blocks[..., 2:]
    if bits == 4:  # the first half of a block's codes is in the low bits, the second in the high
        apart = np.concatenate([codes & 15, codes >> 4], axis=-1)
        codes = (apart[..., 0::2] | apart[..., 1::2] << 4).astype(np.uint8)
    else:
        codes = (codes ^ 128).astype(np.uint8)  # from two's complement to numbers that begin at 0
    weight = np.ascontiguousarray(codes).reshape(data.shape[0], -1).view(np.uint32)
    parts = {"weight": weight, "scales": scales, "biases": -scales * 2 ** (bits - 1)}
    return Packing(_BLOCK, bits), {name: mx.array(value) for name, value in parts.items()}
