"""The measures of the code, on small packages written here."""

from pathlib import Path

import pytest

from tools.house import circles, depths, import_graph, modules, table


def package(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / "mlx_dpo" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_imports_in_functions_and_for_types_alone_close_a_circle(tmp_path: Path) -> None:
    package(
        tmp_path,
        __init__="",
        a="from mlx_dpo import b\n",
        b="def f():\n    import mlx_dpo.c\n",
        c="if TYPE_CHECKING:\n    from mlx_dpo.a import A\n",
        d="import os\nimport mlx_dpo.a as a\n",
    )
    graph = import_graph(modules(tmp_path))
    assert circles(graph) == [["mlx_dpo.a", "mlx_dpo.b", "mlx_dpo.c", "mlx_dpo.a"]]
    assert graph["mlx_dpo.d"] == {"mlx_dpo.a"}
    assert depths(graph)["mlx_dpo.d"] == 3


def test_a_circle_is_the_shortest_way_round_and_a_tree_has_none() -> None:
    rows = {"a": "bd", "b": "c", "c": "a", "d": "a", "e": "a"}
    graph = {name: frozenset(others) for name, others in rows.items()}
    assert circles(graph) == [["a", "d", "a"]]
    assert circles({**graph, "b": frozenset("c"), "c": frozenset(), "d": frozenset()}) == []
    assert depths({"a": frozenset("bc"), "b": frozenset("c"), "c": frozenset()})["a"] == 2


def test_a_relative_import_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1: relative import"):
        import_graph(modules(package(tmp_path, a="from . import b\n")))


def test_convert_beside_the_package_is_part_of_it(tmp_path: Path) -> None:
    package(tmp_path, a="from mlx_dpo.convert.b import f\n", __init__="")
    (tmp_path / "convert").mkdir()
    (tmp_path / "convert" / "b.py").write_text("def f():\n    return 1\n")
    (tmp_path / "mlx_dpo" / "convert").symlink_to("../convert")
    graph = import_graph(modules(tmp_path))
    assert graph["mlx_dpo.a"] == {"mlx_dpo.convert.b"}
    assert len(graph) == 3


def test_the_table_counts_what_is_there(tmp_path: Path) -> None:
    package(
        tmp_path,
        __init__='"""Nothing."""\n',
        a="def one():\n    return 1\n",
        b="import mlx_dpo.a\n\n\ndef two():\n    x = 1\n    return x\n",
    )
    rows = dict(table(tmp_path))
    assert rows["files, without __init__"] == "2"
    assert rows["lines"] == "9"
    assert rows["longest file"] == "6 (mlx_dpo.b)"
    assert rows["median function, lines"] == "2.5"
    assert rows["longest function"] == "3 (mlx_dpo.b.two)"
    assert rows["import depth, most"] == "1 (mlx_dpo.b)"
    assert rows["circles"] == "none"
