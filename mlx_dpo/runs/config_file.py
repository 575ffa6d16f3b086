"""A config file, TOML or YAML, by the names that settings have here."""

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.paths import text_of
from mlx_dpo.runs.habits import ours


def read_file(path: Path, known: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """The content of a file by the names that settings have here, and notes on what is unused.

    Args:
        path: Of TOML, or of YAML if its name ends so.
        known: Names of the settings. Other names stay as they are.

    Raises:
        UsageError: If the file is missing or broken, or asks for what there is not.
    """
    if path.suffix in (".json", ".jsonl", ".csv", ".parquet"):
        raise UsageError(f"{path}: is no config file; pairs are given by --data {path}")
    try:
        is_yaml = path.suffix.lower() in (".yaml", ".yml")
        content = _of_yaml(path) if is_yaml else tomllib.loads(text_of(path))
    except OSError as error:
        raise UsageError(f"{path}: not readable: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    try:
        return ours({str(key).replace("-", "_"): value for key, value in content.items()}, known)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _of_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(text_of(path))
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds no settings: a line each is needed, such as beta: 0.1")
    numbers: dict[str, Any] = _with_numbers(content)
    return numbers


def _with_numbers(value: Any) -> Any:
    """What YAML 1.1 takes for text, as 1e-5, as numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(each) for key, each in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value, re.IGNORECASE):
        return float(value)
    return value
