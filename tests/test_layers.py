"""Imports run one way only: from a wing to itself or to a lower floor."""

import ast
from pathlib import Path

import pytest

import mlx_dpo

PACKAGE = Path(mlx_dpo.__file__).parent
FLOORS = [
    {"__init__", "__main__"},
    {"cli"},
    {"insight", "workshop"},
    {"runs"},
    {"memory"},
    {"training", "convert"},
    {"models"},
    {"preferences"},
    {"files"},
    {"records", "errors"},
]
# `convert` may be a link, which rglob does not follow.
FILES = sorted({*PACKAGE.rglob("*.py"), *(PACKAGE / "convert").rglob("*.py")})
FLOOR = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}


def imported_wings(file: Path) -> set[str]:
    """Wings a file names anywhere, inside functions too; types alone (TYPE_CHECKING) included."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("mlx_dpo.")} & FLOOR.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_from_its_own_wing_or_a_lower_floor(file: Path) -> None:
    wing = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imported_wings(file):
        assert other == wing or FLOOR[other] > FLOOR[wing], f"{wing} imports {other}"
