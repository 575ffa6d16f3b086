"""Imports run one way only: from a wing to itself or to a lower floor, and never in a circle."""

import re
from pathlib import Path

import pytest

import mlx_dpo
from tools.house import circles, import_graph, modules

FLOORS = [
    {"__main__"},
    {"cli"},
    {"insight", "workshop"},
    {"runs"},
    {"memory"},
    {"training", "convert"},
    {"models"},
    {"preferences"},
    {"manifest"},
    {"files", "paths"},
    {"records", "errors", "extras"},
]
FLOOR = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
ROOT = Path(mlx_dpo.__file__).parent.parent
GRAPH = import_graph(modules(ROOT))


def wing_of(module: str) -> str:
    return module.split(".")[1]


def test_every_wing_has_a_floor() -> None:
    assert {wing_of(module) for module in GRAPH if module != "mlx_dpo"} == FLOOR.keys()


def test_contributing_names_the_floors_in_their_order() -> None:
    (chain,) = re.findall(r"imports run one way: ([^.]*)\.", (ROOT / "CONTRIBUTING.md").read_text())
    assert [set(re.findall(r"`(\w+)`", floor)) for floor in chain.split("→")] == FLOORS[1:]


@pytest.mark.parametrize("module", sorted(GRAPH.keys() - {"mlx_dpo"}))
def test_a_file_imports_from_its_own_wing_or_a_lower_floor(module: str) -> None:
    wing = wing_of(module)
    for other in map(wing_of, GRAPH[module] - {"mlx_dpo"}):
        assert other == wing or FLOOR[other] > FLOOR[wing], f"{wing} imports {other}"


def test_no_file_is_imported_by_what_it_imports() -> None:
    assert not (found := circles(GRAPH)), " and ".join(" > ".join(way) for way in found)
