"""What the documents name and link to exists."""

import ast
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"),
     *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")]
)  # fmt: skip
CODE_FOLDERS = ("mlx_dpo", "convert", "tools", "benchmarks", "tests", "docs", "data", "notebooks")


def paths_below(folder: Path) -> Iterator[str]:
    """Every file and folder of the code, a folder with a slash behind it."""
    for path in folder.iterdir():
        if not path.name.startswith((".", "__pycache__")):
            yield f"/{path.relative_to(ROOT)}" + "/" * path.is_dir()
            if path.is_dir():
                yield from paths_below(path)


MODULE = r"(?:mlx_dpo|tools|benchmarks|tests)\.[\w.]+"
PATHS = [path for name in (*CODE_FOLDERS, "checkpoints") for path in paths_below(ROOT / name)]
# What runs write, not what lies here.
WRITTEN = ("runs/", "checkpoints/", "benchmarks/.venvs", "step-", "MODEL/")


def names(page: Path) -> set[str]:
    """Code between single backticks, without fenced blocks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return set(re.findall(r"`([^`\n]+)`", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_documented_file_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_section_that_is_linked_to_is_there(page: Path) -> None:
    for target, section in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text()):
        text = (page.parent / target if target else page).read_text()
        headings = [heading.lower() for heading in re.findall(r"^#+ (.*)", text, re.M)]
        anchors = [re.sub(r"[^\w -]", "", heading).replace(" ", "-") for heading in headings]
        assert section in anchors, f"{target}#{section}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_documented_path_or_module_is_there(page: Path) -> None:
    """A path from the root, a `.py` file or folder by its last parts, or a dotted name."""
    # The folders of tests are named like those of the code; a page elsewhere means the code.
    inside_tests = page.is_relative_to(ROOT / "tests")
    paths = [path for path in PATHS if inside_tests or not path.startswith("/tests/")]
    for name in names(page):
        if re.fullmatch(r"[\w./-]+", name) and not name.startswith(WRITTEN):
            if name.startswith(tuple(f"{folder}/" for folder in CODE_FOLDERS)):
                assert (ROOT / name).exists(), name
            elif name.endswith((".py", "/")):
                assert [path for path in paths if path.endswith(f"/{name}")], name
            elif re.fullmatch(MODULE, name):
                resolve_name(name)
    for module in re.findall(rf"python -m ({MODULE})", page.read_text()):
        assert find_spec(module), module


def test_what_the_notebook_imports_is_there() -> None:
    cells = json.loads((ROOT / "notebooks" / "dpo.ipynb").read_text("utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    own = [node for node in imports if re.fullmatch(MODULE, f"{node.module}.x")]
    assert own
    for node in own:
        for alias in node.names:
            resolve_name(f"{node.module}.{alias.name}")


def test_the_tree_in_the_readme_is_the_package() -> None:
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"^## Where things are\n\n```\n(.*?)^```", text, re.M | re.S)
    listed, folder = set(), ROOT
    for line in block.splitlines():
        entries, about = line[:24], line[24:]  # two columns
        for entry in entries.split(" -> ")[0].split():
            folder = ROOT / ("mlx_dpo" if line.startswith(" ") else "") / entry
            assert folder.exists(), entry
            listed.add(folder)
        for part in re.findall(r"[\w-]+/", about):
            assert (folder / part).exists(), f"{folder.name}: {part}"
    own = (ROOT / "mlx_dpo").iterdir()
    assert {path for path in own if not path.name.startswith(("_", ".", "py."))} <= listed
