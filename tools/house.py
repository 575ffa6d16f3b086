"""Sizes and imports of mlx_dpo and convert: the table by which the code is kept small.

    python -m tools.house                     # this checkout
    python -m tools.house /path/to/another    # before and after

Imports count wherever they stand: in functions and under TYPE_CHECKING too. A function's lines are
those from `def` to its last one, nested functions counted as well.
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median, quantiles

PACKAGE = "mlx_dpo"
ROOT = Path(__file__).resolve().parents[1]

Graph = dict[str, frozenset[str]]
"""Module name to the names of the modules of the package that it imports."""


def modules(root: Path) -> dict[str, Path]:
    """Every module of a checkout by name; `convert/` beside the package is `mlx_dpo.convert`."""
    files = {}
    for top, prefix in ((PACKAGE, ()), ("convert", (PACKAGE,))):
        for path in sorted((root / top).rglob("*.py")):
            parts = (*prefix, *path.relative_to(root).with_suffix("").parts)
            name = ".".join(parts).removesuffix(".__init__")
            # If rglob follows the link mlx_dpo/convert, the same names come again.
            files[name] = path
    return files


def imports(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Those of `names` that a module imports; `from a import b` is module `a.b` where that exists.

    Raises:
        ValueError: If an import is relative: its target would not be seen.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: relative import")
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in names:
                    yield inner
                elif node.module in names:
                    yield str(node.module)


def import_graph(files: dict[str, Path]) -> Graph:
    """What each module imports of the others."""
    names = set(files)
    return {
        name: frozenset(imports(ast.parse(path.read_text("utf-8")), names)) - {name}
        for name, path in files.items()
    }


def circles(graph: Graph) -> list[list[str]]:
    """One way round for every group of modules that reach each other: a, b, ..., back to a."""
    reached = {name: _reach(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other]) for name in graph
    }
    return sorted(_way_round(graph, group) for group in groups if group)


def _reach(graph: Graph, start: str) -> set[str]:
    """Modules that importing one leads to; itself only if it is in a circle."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def _way_round(graph: Graph, group: frozenset[str]) -> list[str]:
    """The shortest way from the first module of a group back to it."""
    first = min(group)
    ways = [[first]]
    for way in ways:
        for name in sorted(graph[way[-1]] & group):
            if name == first:
                return [*way, first]
            ways.append([*way, name])
    raise AssertionError("a group holds modules that reach each other")


def depths(graph: Graph) -> dict[str, int]:
    """Longest chain of imports below each module; within a circle, the import back is left out."""
    under_way: set[str] = set()

    @cache
    def depth(name: str) -> int:
        under_way.add(name)
        below = [depth(other) for other in sorted(graph[name] - under_way)]
        under_way.remove(name)
        return 1 + max(below, default=-1)

    return {name: depth(name) for name in sorted(graph)}


def table(root: Path) -> list[tuple[str, str]]:
    """Rows of measure and value."""
    files = modules(root)
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in files.items()}
    own = {name: count for name, count in lines.items() if files[name].name != "__init__.py"}
    functions = sorted(_functions(files))
    lengths = [length for length, _ in functions]
    graph = import_graph(files)
    below = depths(graph)
    longest, deepest = max(own, key=own.__getitem__), max(below, key=below.__getitem__)
    return [
        ("files, without __init__", f"{len(own)}"),
        ("lines", f"{sum(lines.values()):,}"),
        ("median file, lines", f"{median(own.values()):g}"),
        ("longest file", f"{own[longest]} ({longest})"),
        ("functions", f"{len(functions):,}"),
        ("median function, lines", f"{median(lengths):g}"),
        ("90 % of functions, at most", f"{quantiles(lengths, n=10, method='inclusive')[-1]:g}"),
        ("longest function", "{} ({})".format(*functions[-1])),
        ("imports between files", f"{sum(map(len, graph.values())):,}"),
        ("import depth, median", f"{median(below.values()):g}"),
        ("import depth, most", f"{below[deepest]} ({deepest})"),
        ("circles", "; ".join(" > ".join(way) for way in circles(graph)) or "none"),
    ]


def _functions(files: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Length and name of every function."""
    for module, path in files.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield int(node.end_lineno or 0) - node.lineno + 1, f"{module}.{node.name}"


if __name__ == "__main__":
    for measure, value in table(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT):
        print(f"{measure:28} {value}")
