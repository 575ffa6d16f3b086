"""config.json of a model folder, and its other JSON files: read, checked, and what they say."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.models.parameters import has_weights, tensor_shapes
from mlx_dpo.paths import check_links, inside, text_of

MAX_CONFIG = 4_000_000  # bytes
MAX_JSON = 64 * 2**20  # bytes
PACKINGS = ("quantization", "quantization_config")  # of config.json; MLX writes both
_DTYPE_OF = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        UsageError: If it is missing or not a JSON object, or the folder has a link that leads out.
    """
    path = folder / "config.json"
    if folder.is_dir():
        check_links(folder)
    if not path.exists():
        raise UsageError(f"{folder}: no config.json; a model folder holds one")
    return read_json(path, MAX_CONFIG)


def read_json(path: Path, max_bytes: int = MAX_JSON) -> dict[str, Any]:
    """An object in a JSON file, its keys in the file's order.

    Raises:
        UsageError: If the file is missing, leads out of its folder, is too large or holds
            anything else.
    """
    file = inside(path.parent, path.name)
    try:
        if file.stat().st_size > max_bytes:
            raise UsageError(f"{path}: has more than {max_bytes} bytes")
        content = json.loads(text_of(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected a JSON object")
    return content


def checked_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, of a model that can be loaded.

    Raises:
        UsageError: If it can't be read, the model is quantised by others than MLX, or it names code
            to run.
    """
    config = read_config(folder)
    if "model_file" in config:
        raise UsageError(f"{folder}: its config.json names code to run; that is never done here")
    if (foreign := foreign_packing(config)) is not None:
        raise UsageError(
            f"{folder}: is quantised by {foreign}, which MLX does not train through; start from "
            "the full-precision model, or from one packed by mlx_lm.convert --quantize"
        )
    return config


def is_quantised(config: dict[str, Any]) -> bool:
    """Whether a config.json says that its model, or the language model inside, is quantised."""
    return any(holder.get(key) for holder in _holders(config) for key in PACKINGS)


def foreign_packing(config: dict[str, Any]) -> str | None:
    """How a model is quantised otherwise than by MLX, such as ``awq``; None where it is not.

    MLX writes its own settings twice: as ``quantization``, and for others to see.
    """
    for holder in _holders(config):
        settings = holder.get("quantization_config")
        if settings and not any(each.get("quantization") for each in _holders(config)):
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            return str(method or "an unnamed method")
    return None


def stored_shapes(
    config: dict[str, Any], shapes: Mapping[str, tuple[tuple[int, ...], str]]
) -> list[tuple[int, ...]]:
    """Shapes of a folder's tensors, those of packed ones as they are once unpacked."""
    packing: Any = next(
        (holder[key] for holder in _holders(config) for key in PACKINGS if holder.get(key)), {}
    )
    found = []
    for name, (shape, _) in shapes.items():
        path = name.removesuffix(".weight")
        scales = shapes.get(f"{path}.scales")
        if name.endswith(".weight") and scales is not None and isinstance(packing, dict):
            own = packing.get(path)
            group = (own if isinstance(own, dict) else packing).get("group_size")
            # Scales have one column for each group of columns.
            shape = (*shape[:-1], scales[0][-1] * (group if isinstance(group, int) else 1))
        found.append(shape)
    return found


def num_stored_parameters(folder: Path) -> int:
    """Weights of a model folder, by the headers of its files; packed ones as they are unpacked.

    Raises:
        UsageError: If there is no config.json or no weights, or a file is malformed.
    """
    shapes = tensor_shapes(folder)
    scales = {name for name in shapes if name.endswith(".scales")}
    helpers = scales | {f"{name.removesuffix('.scales')}.biases" for name in scales}
    sizes = zip(shapes, stored_shapes(read_config(folder), shapes), strict=True)
    return sum(math.prod(shape) for name, shape in sizes if name not in helpers)


def own_dtype(folder: Path) -> str:
    """``float32``, ``bfloat16`` or ``float16``: what most of a folder's numbers are stored as.

    Of a quantised model those that are not packed: scales, norms. Of a folder without weights what
    its config.json names.
    """
    if not has_weights(folder):
        config = read_config(folder)
        named = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
        return named if named in _DTYPE_OF.values() else "float32"
    sizes = Counter[str]()
    for shape, code in tensor_shapes(folder).values():
        sizes[code] += math.prod(shape)
    found = [_DTYPE_OF[code] for code, _ in sizes.most_common() if code in _DTYPE_OF]
    return found[0] if found else "float32"


def _holders(config: dict[str, Any]) -> list[dict[str, Any]]:
    text = config.get("text_config")
    return [config, text if isinstance(text, dict) else {}]
