"""Optional parts of this package, and the command that installs one."""

import shlex
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def to_install(extra: str, root: Path = _ROOT) -> str:
    """What to type to get an optional part: `gguf`, `label`, `parquet` or `torch`.

    In a clone that is the part of the clone. From a wheel it is the packages themselves, since
    mlx-dpo is in no package index.

    Args:
        extra: A key of pyproject.toml's optional dependencies.
        root: The folder that holds the package.
    """
    if (root / "pyproject.toml").is_file():
        here = "." if Path.cwd().resolve() == root else str(root)
        return shlex.join(["pip", "install", "-e", f"{here}[{extra}]"])
    try:
        lines = requires("mlx-dpo") or []
    except PackageNotFoundError:
        lines = []
    parts = [line.partition(";") for line in lines]
    needed = [package.strip() for package, _, mark in parts if f'extra == "{extra}"' in mark]
    return shlex.join(["pip", "install", *(needed or [extra])])
