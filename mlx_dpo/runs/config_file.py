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
    """The content of a file by the names that settings have here, and notes on what differs.

    Args:
        path: Of TOML, or of YAML if its name ends so.
        known: Names of the settings. Other names stay as they are.

    Raises:
        UsageError: If the file is missing or broken, or asks for what there is not.
    """
    content = content_of(path)
    try:
        return ours(content, known)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def content_of(path: Path) -> dict[str, Any]:
    """The content of a file by its own names, with underscores.

    Raises:
        UsageError: If the file is missing or broken.
    """
    if path.suffix in (".json", ".jsonl", ".csv", ".tsv", ".parquet"):
        raise UsageError(f"{path}: is no config file; pairs are given by --data {path}")
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    kind = "YAML" if is_yaml else "TOML"
    try:
        content = _of_yaml(path) if is_yaml else tomllib.loads(text_of(path))
        huge = [str(key)[:60] for key, value in content.items() if _is_huge(value)]
    except OSError as error:
        raise UsageError(f"{path}: not readable: {error.strerror}") from None
    except RecursionError:
        raise UsageError(f"{path}: not {kind}: nested too deeply") from None
    except (ValueError, ArithmeticError) as error:
        # Python's refusal of a number, where it is not the parser's, has no place and no name.
        reason = str(error) if "(at " in str(error) else "a number or character is out of range"
        raise UsageError(f"{path}: not {kind}: {reason}") from None
    if huge:
        raise UsageError(f"{path}: {', '.join(huge)}: a whole number is beyond 64 bits")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _of_yaml(path: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """A value that Python can't hold, such as the day 2026-02-30, is an error with its line."""

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, AttributeError):
                reason = f"not a valid {node.tag.rpartition(':')[2]}: {node.value!r:.40}"
                raise yaml.constructor.ConstructorError(
                    None, None, reason, node.start_mark
                ) from None

    try:
        content = yaml.load(text_of(path), Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: holds no settings: a line each is needed, such as beta: 0.1")
    numbers: dict[str, Any] = _with_numbers(content)
    return numbers


def _is_huge(value: Any) -> bool:
    """Whether there is a whole number of more than 64 bits, which may be too long to print."""
    if isinstance(value, dict):
        return any(map(_is_huge, (*value, *value.values())))
    if isinstance(value, list):
        return any(map(_is_huge, value))
    return isinstance(value, int) and value.bit_length() > 63


def _with_numbers(value: Any) -> Any:
    """What YAML 1.1 takes for text, as 1e-5, as numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(each) for key, each in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value, re.IGNORECASE):
        return float(value)
    return value
