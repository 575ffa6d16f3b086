"""What goes into the wheel; tools/wheel.py builds one and uses it."""

import fnmatch
import tomllib
from pathlib import Path

from tools.wheel import ROOT, SOURCES

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folders() -> list[Path]:
    """The folders of the package, by the names that they are imported by."""
    below = [ROOT / "mlx_dpo", *(ROOT / "mlx_dpo").rglob("*"), *(ROOT / "convert").rglob("*")]
    parts = [path.relative_to(ROOT).parts for path in below if path.name == "__init__.py"]
    named = {("mlx_dpo", *each) if each[0] == "convert" else each for each in parts}
    return sorted(Path(*each).parent for each in named)


def test_every_package_of_the_tree_is_in_the_wheel() -> None:
    assert SETUPTOOLS["packages"] == [".".join(folder.parts) for folder in folders()]


def test_every_other_file_of_the_tree_is_in_the_wheel() -> None:
    data = {
        str(Path(*name.split(".")) / pattern)
        for name, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
    }
    files = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "mlx_dpo").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
    ]
    assert "mlx_dpo/py.typed" in files
    for file in files:
        assert any(fnmatch.fnmatch(file, pattern) for pattern in data), file
    assert {"mlx_dpo", "convert"} < set(SOURCES)
