"""Weight files of a model folder: one, or several with an index where one would be too large."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mlx_dpo.models.parameters import save_arrays

_WHOLE = "model.safetensors"


def save_shards(
    folder: Path,
    arrays: dict[str, mx.array],
    metadata: dict[str, str],
    *,
    max_bytes: int,
    after_array: Callable[[str, mx.array], None] = lambda name, array: None,
) -> None:
    """Write ``model.safetensors``, or ``model-00001-of-0000N.safetensors`` and so on.

    Args:
        folder: An existing folder without weights.
        arrays: By name; emptied. Lazy ones are computed one by one, and let go of with their file,
            so that memory holds one file's at a time.
        metadata: Free texts for each file.
        max_bytes: Largest file, unless a single array is larger.
        after_array: Called with each array and its name once it is computed; it may raise.

    Raises:
        DiskError: If a file can't be written.
    """
    shards = _shards(arrays, max_bytes)
    total = sum(array.nbytes for array in arrays.values())
    file_of: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        several = len(shards) > 1
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if several else _WHOLE
        shard = {}
        for name in names:
            shard[name] = array = arrays.pop(name)
            mx.eval(array)
            after_array(name, array)
        save_arrays(folder / file, shard, metadata)
        file_of |= dict.fromkeys(names, file)
        shard.clear()
        mx.clear_cache()
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        text = json.dumps(index, indent=2) + "\n"
        (folder / f"{_WHOLE}.index.json").write_text(text, encoding="utf-8")


def _shards(arrays: dict[str, mx.array], max_bytes: int) -> list[list[str]]:
    """Sorted names, a list for each file; at least one list."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(arrays):
        if shards[-1] and size + arrays[name].nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += arrays[name].nbytes
    return shards
