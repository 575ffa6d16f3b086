"""Write a trained model as a folder that mlx-lm and this project load."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError
from mlx_dpo.files import new_folder
from mlx_dpo.manifest import DIGESTS, write_digests
from mlx_dpo.models.config import PACKINGS, read_config
from mlx_dpo.models.dialects import normalised
from mlx_dpo.models.fuse import choose_packings, fused, left_dense, packed_anew, packing_entry
from mlx_dpo.models.parameters import is_float, named_arrays, save_arrays
from mlx_dpo.models.shards import save_shards
from mlx_dpo.models.tokenizer import NAMED_TEMPLATES
from mlx_dpo.paths import check_ordinary, entries_of, inside, is_system_file

SHARD_BYTES = 2 * 2**30  # largest weight file of a fused model; as much is held in memory
CONVERSION = "convert.json"  # as `convert.record` writes it

# The files that belong to a model besides weights and config.json: tokenizer, chat templates,
# generation settings, processors, licence, and what the way back to PyTorch needs.
_COMPANIONS = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.tiktoken", "*.model", "chat_template*", f"{NAMED_TEMPLATES}/*.jinja"),
    *("generation_config.json", "*processor_config.json", "LICENSE*", "LICENCE*", "NOTICE*"),
    CONVERSION,
)
# Other files of these kinds may be part of a tokenizer or processor that is not known here.
_TELLING = (".json", ".jinja", ".txt", ".py")
# Written anew, or of the weights.
_REPLACED = ("config.json", "dpo.json", "adapter_config.json", "train.toml", DIGESTS)


def companions(source: Path) -> list[Path]:
    """The files to copy from a model folder beside the weights, by name.

    Raises:
        UsageError: If one of them is a link that leads out of the folder, a pipe or a device.
    """
    found = {file for pattern in _COMPANIONS for file in source.glob(pattern)}
    for file in found:
        check_ordinary(file)
    files = sorted(file for file in found if file.is_file() and not is_system_file(file.name))
    return [inside(file.parent, file.name) for file in files]


Companions = dict[Path, bytes]  # content of each, by its path below the model folder


class ModelFiles(NamedTuple):
    """What a model folder holds beside its weights, as it was at one moment.

    A run that trains for hours writes what it began with, whatever happens to the folder meanwhile.

    Attributes:
        config: Of config.json.
        companions: As from `read_companions`.
        weights: Size and time of each weight file, by which a change is noticed.
    """

    config: dict[str, Any]
    companions: Companions
    weights: dict[str, tuple[int, int]]


def read_files(source: Path) -> ModelFiles:
    """Read config.json and the companions of a model folder.

    Raises:
        UsageError: As for `companions`, or if one can't be read.
    """
    return ModelFiles(read_config(source), read_companions(source), weight_stamps(source))


def weight_stamps(source: Path) -> dict[str, tuple[int, int]]:
    """Size and time (ns) of each weight file of a folder, by name."""
    stats = {file.name: file.stat() for file in source.glob("*.safetensors")}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in sorted(stats.items())}


def read_companions(source: Path) -> Companions:
    """Read the companions of a model folder.

    Raises:
        UsageError: As for `companions`, or if one can't be read.
    """
    try:
        return {file.relative_to(source): file.read_bytes() for file in companions(source)}
    except OSError as error:
        raise UsageError(f"{error.filename}: not readable: {error.strerror}") from None


def write_companions(contents: Companions, folder: Path, *left_out: str) -> None:
    """Write companions into another folder but for some names."""
    for path, content in contents.items():
        if path.name not in left_out:
            target = folder / path
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)


def left_behind(source: Path) -> list[str]:
    """Names of text files in a model folder that are neither copied nor written anew."""
    known = {file.name for file in companions(source)} | set(_REPLACED)
    return sorted(
        entry.name
        for entry in entries_of(source)
        if entry.suffix in _TELLING
        and entry.is_file()
        and entry.name not in known
        and not entry.name.endswith(".index.json")
    )


@contextmanager
def new_model_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder as `files.new_folder` does, and write the digests of its files at the end.

    Raises:
        DiskError: As there.
    """
    with new_folder(path, replace=replace) as folder:
        yield folder
        write_digests(folder)


def export_folder(
    model: nn.Module,
    files: ModelFiles,
    out: Path,
    record: dict[str, Any],
    *,
    card: str | None = None,
    replace: bool = False,
) -> None:
    """Save `model` with the tokenizer and config of the folder it came from.

    Args:
        model: Trained weights, all of one dtype.
        files: Of the folder it was loaded from.
        out: The new folder; it appears complete or not at all.
        record: The model's source and settings, written as ``dpo.json``.
        card: Written as ``README.md``; None for no such file.
        replace: Whether `out` may exist.

    Raises:
        DiskError: If it can't be written, or exists and may not.
    """
    dtype = next(iter(named_arrays(model.parameters()).values())).dtype
    with new_model_folder(out, replace=replace) as folder:
        write_companions(files.companions, folder)
        write_json(folder / "config.json", config_of(files.config, dtype))
        write_json(folder / "dpo.json", record)
        if card is not None:
            write_card(folder, card)
        save_arrays(folder / "model.safetensors", model.parameters(), {"format": "mlx"})


def write_fused(
    folder: Path,
    model: nn.Module,
    source: Path,
    dtype: mx.Dtype,
    *,
    bits: int | None = None,
    mode: str = "affine",
    progress: Callable[[str, int, int], None] = lambda name, total, more: None,
) -> tuple[dict[str, Any] | None, list[str]]:
    """Write a model without its adapter and packing, or packed anew, but for its ``dpo.json``.

    Args:
        folder: An empty folder.
        model: With an adapter or without; see `models.fuse`.
        source: The folder it was loaded from; only read.
        dtype: Of the new weights.
        bits: To pack them in; None leaves them unpacked.
        mode: Of packed ones, as `mlx.core.quantize` names it.
        progress: Called with what is written, how many tensors it is, and how many more are done.

    Returns:
        How config.json says it is packed, None where it is not; and the layers that are not packed
        though others are.

    Raises:
        UsageError: If a value does not fit the dtype, or no layer can be packed.
        DiskError: If a file can't be written.
    """
    packings = None if bits is None else choose_packings(model, bits, mode)
    packing = None if packings is None else packing_entry(packings)
    arrays = fused(model, dtype) if packings is None else packed_anew(model, dtype, packings)
    total = len(arrays)

    def check(name: str, array: mx.array) -> None:
        if is_float(array) and not mx.isfinite(array).all().item():
            raise UsageError(f"{name}: holds values too large for {array.dtype}: see --dtype")
        progress("tensors", total, 1)

    # The record of a conversion leads back from dense weights only.
    files = read_files(source)
    write_companions(files.companions, folder, *([] if packing is None else [CONVERSION]))
    write_json(folder / "config.json", config_of(files.config, dtype, packing))
    save_shards(folder, arrays, {"format": "mlx"}, max_bytes=SHARD_BYTES, after_array=check)
    return packing, [] if packings is None else left_dense(model, packings)


def config_of(
    config: dict[str, Any], dtype: mx.Dtype, packing: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The config.json for new weights of a model.

    Args:
        config: That of the model.
        dtype: Of the new weights.
        packing: How they are quantised, as mlx-lm writes it; None where they are not.
    """
    # Both spellings, because mlx-lm reads one and transformers 5 the other.
    config = copy.deepcopy(config) | normalised(config)
    name = str(dtype).removeprefix("mlx.core.")
    config |= {key: name for key in ("torch_dtype", "dtype") if key in config}
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in PACKINGS:
            holder.pop(key, None)
    return config | dict.fromkeys(PACKINGS if packing else (), packing)


def write_card(folder: Path, card: str) -> None:
    """Write the README of a model folder."""
    (folder / "README.md").write_text(card, encoding="utf-8")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON file of a model folder."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
