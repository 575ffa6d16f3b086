"""mlx-lm's layout: adapters.safetensors, and a config with one rank and one scale for all."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.convert.adapters.tensors import (
    CONFIG,
    check_number,
    check_rank,
    most_common,
    part_of,
    plain,
    read_tensors,
    scaled_to,
    shown,
    widened,
    with_magnitudes,
    write_config,
)
from mlx_dpo.errors import UsageError
from mlx_dpo.models.adapters import Adapter, Part
from mlx_dpo.models.config import read_json
from mlx_dpo.models.parameters import save_arrays

FILE = "adapters.safetensors"

_LEAF = {"lora_a": "a", "lora_b": "b", "m": "m"}


def read_mlx(folder: Path) -> dict[str, Part]:
    """Read an adapter as mlx-lm writes it.

    Dropout is ignored: it is off wherever a model is not trained.

    Raises:
        UsageError: If a file is missing or damaged, or it holds no LoRA or DoRA adapter.
    """
    kind, rank, scale = _settings(folder / CONFIG)
    file = folder / FILE
    modules: dict[str, dict[str, mx.array]] = {}
    for name, value in read_tensors(folder, FILE).items():
        path, _, leaf = name.rpartition(".")
        if not path or leaf not in _LEAF:
            raise UsageError(f"{file}: holds {name}, which is not a tensor of an adapter")
        modules.setdefault(path, {})[_LEAF[leaf]] = value
    for path, tensors in modules.items():
        if ("m" in tensors) != (kind == "dora"):
            raise UsageError(
                f"{file}: {path} has {'a' if 'm' in tensors else 'no'} magnitude, and {CONFIG} "
                f"says {kind}"
            )
    return {
        path: part_of(path, tensors, scale, rank, file) for path, tensors in sorted(modules.items())
    }


def write_mlx(folder: Path, adapter: Adapter, model: nn.Module) -> None:
    """Write an adapter that mlx-lm loads.

    The config holds one rank and one scale: smaller ranks are filled up with zeros, other scales
    go into B. Layers it names that are not in the file get an adapter of zeros from mlx-lm.

    Args:
        folder: An existing folder.
        adapter: At least one part, of modules that `model` has.
        model: The model it is for, with or without it.

    Raises:
        UsageError: If it can't be said in this layout.
        DiskError: If a file can't be written.
    """
    parts = with_magnitudes(adapter, model)
    rank = max(part.rank for part in parts.values())
    scale = most_common(part.scale or 1.0 for part in parts.values())
    arrays: dict[str, mx.array] = {}
    for path, part in parts.items():
        alike = scaled_to(widened(part, rank), scale)
        arrays |= {f"{path}.lora_a": alike.a, f"{path}.lora_b": alike.b}
        if alike.magnitude is not None:
            arrays[f"{path}.m"] = alike.magnitude
    is_dora = any(part.magnitude is not None for part in parts.values())
    num_layers, keys = _layers_and_keys(parts, model)
    parameters = {"rank": rank, "scale": plain(scale), "alpha": plain(scale * rank), "dropout": 0.0}
    config = {
        "fine_tune_type": "dora" if is_dora else "lora",
        "num_layers": num_layers,
        "lora_parameters": {**parameters, "keys": keys},
    }
    save_arrays(folder / FILE, arrays, {"format": "mlx"})
    write_config(folder, config)


def _settings(path: Path) -> tuple[str, int, float]:
    """Whether it is LoRA or DoRA, the rank and the scale."""
    config = read_json(path)
    kind = config.get("fine_tune_type", "lora")
    if kind == "full":
        raise UsageError(
            f"{path}: fine_tune_type is 'full': its file holds weights of the model, and no "
            "adapter; make a model folder of it with mlx_lm.fuse"
        )
    if kind not in ("lora", "dora"):
        raise UsageError(f"{path}: fine_tune_type is {shown(kind)}; expected lora or dora")
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise UsageError(f"{path}: has no lora_parameters; it is not as mlx-lm writes it")
    check_rank(path, parameters.get("rank"))
    check_number(path, "scale", parameters.get("scale"))
    return kind, parameters["rank"], float(parameters["scale"])


def _layers_and_keys(adapter: Adapter, model: nn.Module) -> tuple[int, list[str]]:
    """How many of the last blocks are adapted, and names of modules: within a block, or whole."""
    path_of = {id(module): path for path, module in model.named_modules()}
    blocks = [path_of[id(block)] for block in model.layers]
    first = len(blocks) - 1  # 0 layers would mean all
    keys = set()
    for path in adapter:
        number = next((i for i, block in enumerate(blocks) if path.startswith(f"{block}.")), None)
        keys.add(path if number is None else path.removeprefix(f"{blocks[number]}."))
        first = first if number is None else min(first, number)
    return len(blocks) - first, sorted(keys)
