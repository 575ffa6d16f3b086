"""Open WebUI's exports: which answer a thumb prefers to which, and what is left out."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.records import Message
from tests.workshop.importers.test_import import DATA, run_import, user
from tests.workshop.importers.test_shapes import summary_of

FEEDBACK: list[dict[str, Any]] = json.loads((DATA / "open-webui.json").read_text())


def messages_of(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = row["snapshot"]["chat"]["chat"]["history"]["messages"]
    return found


def imported(
    folder: Path, *rows: dict[str, Any], all_pairs: bool = False
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Better and worse answers of some rows, and the codes of those left out."""
    file = folder / "in.json"
    file.write_text(json.dumps(rows))
    _, account, pairs = run_import(file, folder / "out.jsonl", all_pairs=all_pairs)
    return [(p.chosen[0].content, p.rejected[0].content) for p in pairs], dict(account.dropped)


def with_third(rating: int | None, third: int | None = None) -> dict[str, Any]:
    """A thumb on the first of three answers, and perhaps one on the third."""
    row = copy.deepcopy(FEEDBACK[0])
    row["data"]["rating"] = rating
    messages = messages_of(row)
    messages["q"]["childrenIds"].append("a3")
    messages["a3"] = {**messages["a1"], "id": "a3", "content": "Red."}
    messages["a3"]["annotation"] = {"rating": third}
    del messages["a1"]["annotation"], messages["a2"]["annotation"]
    return row


@pytest.mark.parametrize(
    ("rating", "third", "best", "every"),
    [
        (1, None, [("Blue.", "Green.")], [("Blue.", "Green."), ("Blue.", "Red.")]),
        (-1, None, [("Green.", "Blue.")], [("Green.", "Blue."), ("Red.", "Blue.")]),
        (1, -1, [("Blue.", "Red.")], [("Blue.", "Red."), ("Blue.", "Green.")]),
        (-1, 1, [("Red.", "Blue.")], [("Red.", "Blue."), ("Green.", "Blue.")]),
        (1, 1, [("Blue.", "Green.")], [("Blue.", "Green.")]),
        ("1", None, [("Blue.", "Green.")], [("Blue.", "Green."), ("Blue.", "Red.")]),
    ],
)
def test_a_thumb_is_a_win_over_the_other_answers_or_a_loss_to_them(
    tmp_path: Path,
    rating: int,
    third: int | None,
    best: list[tuple[str, str]],
    every: list[tuple[str, str]],
) -> None:
    row = with_third(rating, third)
    assert imported(tmp_path, row) == (best, {})
    (tmp_path / "out.jsonl").unlink()
    assert imported(tmp_path, row, all_pairs=True) == (every, {})


def test_two_thumbs_of_one_pair_give_it_once_and_opposite_ones_none(tmp_path: Path) -> None:
    assert imported(tmp_path, *FEEDBACK[:2]) == ([("Blue.", "Green.")], {"no-pair": 1})
    other = copy.deepcopy(FEEDBACK[1])
    other["data"]["rating"] = 1
    messages_of(other)["a1"]["annotation"]["rating"] = -1
    assert imported(tmp_path, FEEDBACK[0], other) == ([], {"contradiction": 2})


def test_earlier_turns_are_the_branch_that_was_answered_without_folded_reasoning(
    tmp_path: Path,
) -> None:
    _, _, pairs = run_import(DATA / "open-webui.json", tmp_path / "out.jsonl")
    blue = Message("assistant", "Blue.")
    assert pairs[0].prompt == (Message("system", "You are terse."), user("Sky?"))
    assert pairs[1].prompt == (user("Sky?"), blue, user("Sea?"))
    assert pairs[1].rejected[0].content == "Dry."
    summary, _ = summary_of(DATA / "open-webui.json")
    assert summary.notes == {"an answer was taken without its folded reasoning": 1}
    assert summary.unused == {"data.reason": 3, "data.tags": 3}


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [
        (("q", "files"), [{"type": "file"}], "unsupported"),
        (("q", "role"), "tool", "unsupported"),
        (("q", "childrenIds"), None, "no-pair"),
        (("a1", "content"), '<details type="tool_calls">x</details>Blue.', "unsupported"),
        (("a1", "content"), None, "wrong-type"),
        (("a1", "parentId"), "gone", "no-pair"),
        (("q", "parentId"), "gone", "wrong-type"),
        (("q", "parentId"), "q", "wrong-type"),  # round in circles
        (("a2", "content"), "Blue.", "equal"),
    ],
)
def test_what_cannot_be_a_pair_is_left_out(
    tmp_path: Path, place: tuple[str, str], value: Any, code: str
) -> None:
    row = copy.deepcopy(FEEDBACK[0])
    messages_of(row)[place[0]][place[1]] = value
    assert imported(tmp_path, row) == ([], {code: 1})
