"""The notebook as it is committed: eight experiments, each asked before and explained after."""

import ast
import json
import re
from typing import Any

import pytest

from tests.conftest import ROOT

CELLS = json.loads((ROOT / "notebooks" / "dpo.ipynb").read_text("utf-8"))["cells"]


def sections() -> dict[str, list[dict[str, Any]]]:
    """Cells by the title that they stand under."""
    found: dict[str, list[dict[str, Any]]] = {}
    for cell in CELLS:
        first = cell["source"][0].strip() if cell["source"] else ""
        if cell["cell_type"] == "markdown" and first.startswith("## "):
            found[first.removeprefix("## ")] = []
        if found:
            found[list(found)[-1]].append(cell)
    return found


EXPERIMENTS = {title: cells for title, cells in sections().items() if re.match(r"\d\. ", title)}


def text_of(cells: list[dict[str, Any]], kind: str) -> str:
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == kind)


def test_there_are_eight_experiments() -> None:
    assert [title[0] for title in EXPERIMENTS] == list("12345678")


@pytest.mark.parametrize("title", EXPERIMENTS)
def test_an_experiment_asks_runs_draws_explains_and_asks_again(title: str) -> None:
    cells = EXPERIMENTS[title]
    order = [
        "predict" if "**Predict.**" in text else
        "see" if "**What you should see.**" in text else
        "question" if "**Question.**" in text else
        cell["cell_type"]
        for cell in cells for text in ["".join(cell["source"])]
    ]  # fmt: skip
    places = [order.index(each) for each in ("predict", "code", "see", "question")]
    assert places == sorted(places)
    assert "beside(" in text_of(cells, "code")
    answer = text_of(cells[order.index("question") :], "markdown")
    assert answer.count("<details>") == answer.count("</details>") == 1
    assert "<summary>Answer</summary>\n\n" in answer  # the blank line lets Markdown go on inside


def test_no_two_headings_are_the_same_place_of_the_page() -> None:
    lines = [
        line.strip() for cell in CELLS if cell["cell_type"] == "markdown" for line in cell["source"]
    ]
    headings = [line for line in lines if line.startswith("#")]
    assert len(headings) == len(set(headings)) > 20


def test_the_two_lists_are_left_to_the_student() -> None:
    text = text_of(sections()["Your two lists"], "markdown")
    assert text.count("1. …\n2. …\n3. …") == 2


def test_the_loss_is_computed_by_hand_beside_the_function() -> None:
    code = text_of(sections()["Before you start: the loss by hand"], "code")
    (by_hand,) = [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.FunctionDef) and node.name == "loss_by_hand"
    ]
    assert len(by_hand.body) == 4
    for name in ("pad_and_collate_pref(", "sequence_logprob(", "dpo_loss("):
        assert name in code


def test_a_prediction_stands_apart_from_its_result_which_is_under_run() -> None:
    texts = ["".join(cell["source"]) for cell in CELLS]
    asked = [place for place, text in enumerate(texts) if "**My prediction:**" in text]
    assert len(asked) == sum("**Predict.**" in text for text in texts[1:])
    for place in asked:
        assert re.search(r"\n\n### Run [^\n]*$", texts[place])
        assert CELLS[place + 1]["cell_type"] == "code"


def test_the_page_shows_no_imports() -> None:
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("nbclient")
    pytest.importorskip("nbconvert")
    from tools.notebook import SOURCE, page

    body = page(nbformat.read(SOURCE, as_version=4))
    assert "DPO in eight experiments" in body
    assert "loss_by_hand" in body
    assert "warnings" not in body


def test_the_notebook_is_committed_without_outputs() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = (ROOT / "notebooks" / "page.html").read_text("utf-8")
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=|url\(|@import", page)
    assert page.count("{{ body }}") == 1
