"""What a config.json describes: mlx-lm's model, and the tensors it must be filled with."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.errors import UsageError
from mlx_dpo.models.dialects import mlx_config, model_classes
from mlx_dpo.models.hub import normalised, read_config

Shape = tuple[int, ...]

_SHOWN = 5  # names listed in a message


def checked_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json, of a model that can be converted.

    Raises:
        UsageError: If there is none, it names code to run, or the model is quantised.
    """
    config = read_config(folder)
    if "model_file" in config:
        raise UsageError(f"{folder}: its config.json names code to run; that is never done here")
    inner = config.get("text_config")
    for holder in (config, inner if isinstance(inner, dict) else {}):
        if holder.get("quantization") or holder.get("quantization_config"):
            raise UsageError(
                f"{folder}: the model is quantised; convert the full-precision checkpoint, or make "
                "one: mlx_lm.convert --dequantize"
            )
    return config


def for_mlx(config: dict[str, Any]) -> dict[str, Any]:
    """A config with all entries in the spelling mlx-lm reads, beside the one it had."""
    return config | mlx_config(config, normalised(config))


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    """A config that names no code: the files don't travel, and nothing here would run them."""
    return {key: value for key, value in config.items() if key != "auto_map"}


def skeleton(config: dict[str, Any]) -> nn.Module:
    """mlx-lm's model of a config; its weights are random and not computed until used.

    Args:
        config: As `for_mlx` gives it.

    Raises:
        UsageError: If mlx-lm does not know the architecture or a setting is missing.
    """
    model_class, arguments = model_classes(config)
    try:
        made: nn.Module = model_class(arguments.from_dict(config))
    except Exception as error:  # each architecture checks its settings in its own way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"config.json: mlx-lm can't build {config['model_type']} from it: {reason}"
        ) from None
    return made


def check_tensors(
    found: Mapping[str, mx.array], expected: Mapping[str, mx.array], folder: Path
) -> None:
    """Compare tensors with a model's parameters, name by name and shape by shape.

    Shapes must be equal: one that broadcasts would load and be wrong.

    Raises:
        UsageError: If a tensor is missing, superfluous or of another shape.
    """
    missing = [name for name in expected if name not in found]
    if missing:
        raise UsageError(f"{folder}: tensors are missing: {listed(missing)}")
    superfluous = [name for name in found if name not in expected]
    if superfluous:
        raise UsageError(f"{folder}: mlx-lm's model has no place for: {listed(superfluous)}")
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise UsageError(
                f"{folder}: {name}: expected shape {list(value.shape)}, "
                f"found {list(found[name].shape)}"
            )


def shapes_of(arrays: Mapping[str, mx.array]) -> dict[str, Shape]:
    """Shapes by name."""
    return {name: tuple(value.shape) for name, value in arrays.items()}


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
