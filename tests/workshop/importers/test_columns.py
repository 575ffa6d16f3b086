"""No column of a row vanishes without a word: it is used, or named with a count and a way out."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.records import Message
from tests.workshop.importers.test_import import invoke, run_import, user

PAIR = {"prompt": "And now?", "chosen": "Fine.", "rejected": "What?"}
ROUNDS = (
    user("Hi"),
    Message("assistant", "Hello."),
    user("Well?"),
    Message("assistant", "Yes."),
    user("And now?"),
)


def import_rows(folder: Path, rows: list[dict[str, Any]], *options: str) -> tuple[str, str]:
    """What the command says of some rows, on stdout and stderr."""
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = invoke("import", source, "--out", folder / "out.jsonl", "--overwrite", *options)
    assert result.exception is None or isinstance(result.exception, DataError)
    return result.stdout, result.stderr


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("asked", ["prompt", "question"])
def test_a_system_column_is_part_of_every_prompt(tmp_path: Path, name: str, asked: str) -> None:
    row = {"id": "t1", "source": "x", name: "You are a pirate.", asked: "Name a river."}
    out, _ = import_rows(tmp_path, [row | {"chosen": "The Nile, arr.", "rejected": "The Nile."}])
    (pair,) = read_preferences(tmp_path / "out.jsonl")
    assert pair.prompt == (Message("system", "You are a pirate."), user("Name a river."))
    assert "unused  id (1 row), source (1 row); --columns NAME=COLUMN" in out


@pytest.mark.parametrize(
    "history",
    [
        [["Hi", "Hello."], ["Well?", "Yes."]],
        [{"human": "Hi", "assistant": "Hello."}, {"assistant": "Yes.", "human": "Well?"}],
        [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello."},
            {"role": "User", "content": "Well?"},
            {"role": "Assistant", "content": "Yes."},
        ],
        json.dumps([["Hi", "Hello."], ["Well?", "Yes."]]),
    ],
)
def test_earlier_rounds_come_before_the_prompt(tmp_path: Path, history: Any) -> None:
    import_rows(tmp_path, [{**PAIR, "history": history, "system": "Be kind."}])
    (pair,) = read_preferences(tmp_path / "out.jsonl")
    assert pair.prompt == (Message("system", "Be kind."), *ROUNDS)


@pytest.mark.parametrize("history", ["Hi.", [["Hi"]], [["a", "b", "c"]], [1], {"x": "y"}])
def test_a_history_of_another_form_leaves_the_row_out_by_its_name(
    tmp_path: Path, history: Any
) -> None:
    out, error = import_rows(tmp_path, [PAIR, {**PAIR, "prompt": "x", "history": history}])
    assert "2 read = 1 kept + 1 dropped (1 wrong-type)" in out
    assert "'history' is not a list of rounds" in error


def test_a_conversation_keeps_its_own_system_turn_and_another_is_refused(tmp_path: Path) -> None:
    own = {"role": "system", "content": "Be brief."}
    prompt = [own, {"role": "user", "content": "Q?"}]
    rows = [
        {"prompt": prompt, "chosen": "a", "rejected": "b"},
        {"prompt": prompt, "chosen": "c", "rejected": "d", "system": "Be brief."},
        {"prompt": prompt, "chosen": "e", "rejected": "f", "system": "Be long."},
        {"prompt": prompt, "chosen": "g", "rejected": "h", "history": [["Hi", "Ho"]]},
    ]
    out, error = import_rows(tmp_path, rows)
    pairs = read_preferences(tmp_path / "out.jsonl")
    system = Message("system", "Be brief.")
    assert [pair.prompt for pair in pairs[:2]] == [(system, user("Q?"))] * 2
    assert pairs[2].prompt == (system, user("Hi"), Message("assistant", "Ho"), user("Q?"))
    assert "the system column and the conversation's own system turn differ; keep one" in error
    assert "(1 wrong-type)" in out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tools", '[{"name": "f"}]'),
        ("images", ["cat.jpg"]),
        ("image", {"bytes": None, "path": "cat.jpg"}),
        ("videos", ["cat.mp4"]),
    ],
)
def test_what_a_pair_has_no_place_for_leaves_the_row_out_by_its_name(
    tmp_path: Path, name: str, value: Any
) -> None:
    out, error = import_rows(tmp_path, [PAIR, {**PAIR, "prompt": "x", name: value}])
    assert "2 read = 1 kept + 1 dropped (1 unsupported)" in out
    assert f"unsupported: has {name!r}, which a pair has no place for" in error
    nothing: list[Any] = [[], "", None, "[]"]
    rows = [{**PAIR, "prompt": str(n), name: value} for n, value in enumerate(nothing)]
    assert "4 read = 4 kept" in import_rows(tmp_path, rows)[0]


def test_calls_and_parts_in_messages_are_read_or_named(tmp_path: Path) -> None:
    def row(message: dict[str, Any]) -> dict[str, Any]:
        return {"prompt": f"Q {message}", "chosen": [message], "rejected": "No."}

    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "Yes, "}, {"type": "text", "text": "indeed."}]
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    rows = [
        row({"role": "assistant", "content": parts}),
        row({"role": "assistant", "content": "", "tool_calls": [call]}),
        row({"role": "assistant", "content": "", "function_call": {"name": "f"}}),
        row({"role": "assistant", "content": image}),
        row({"role": "tool", "content": "42"}),
        row({"role": "assistant", "content": "Yes.", "weight": 1, "tool_calls": []}),
    ]
    out, error = import_rows(tmp_path, rows)
    assert "6 read = 2 kept + 4 dropped (4 unsupported)" in out
    assert "unused  chosen.weight (1 row)" in out
    chosen = [pair.chosen[0].content for pair in read_preferences(tmp_path / "out.jsonl")]
    assert chosen == ["Yes, indeed.", "Yes."]
    for said in ("'tool_calls'", "'function_call'", "'image_url'", "the role 'tool'"):
        assert said in error


def test_columns_of_rows_and_of_what_is_in_them_are_counted(tmp_path: Path) -> None:
    entries = [{"text": "a", "score": 1, "model": "m"}, {"text": "b", "score": 0, "critique": "c"}]
    rows: list[dict[str, Any]] = [
        {"prompt": f"p{n}", "completions": entries, "source": "x", "empty": [], "none": None}
        for n in range(3)
    ]
    rows[2]["source"] = ""
    out, _ = import_rows(tmp_path, rows)
    assert (
        "unused  completions.critique (3 rows), completions.model (3 rows), source (2 rows)" in out
    )
    assert "empty" not in out
    assert "none" not in out


def test_many_columns_are_cut_short_with_their_number(tmp_path: Path) -> None:
    out, _ = import_rows(tmp_path, [PAIR | {f"column{n:02}": 1 for n in range(15)}])
    assert "column11 (1 row) and 3 columns more; --columns" in out


def test_columns_can_be_given_another_name(tmp_path: Path) -> None:
    row = {"ask": "Q?", "good": "a", "bad": "b", "persona": "Be brief.", "topic": "tone"}
    columns = "prompt=ask, chosen=good,rejected=bad,system=persona,kind=topic"
    out, _ = import_rows(tmp_path, [row], "--columns", columns)
    (pair,) = read_preferences(tmp_path / "out.jsonl")
    assert pair.prompt == (Message("system", "Be brief."), user("Q?"))
    assert (pair.chosen[0].content, pair.rejected[0].content, pair.kind) == ("a", "b", "tone")
    assert "unused" not in out
    _, error = import_rows(tmp_path, [row], "--columns", f"{columns},history=earlier")
    assert error == "warning: --columns: no row has a column 'earlier'\n"


@pytest.mark.parametrize("columns", ["prompt", "=a", "prompt=", "a=b,,"])
def test_columns_that_say_nothing_are_one_line(tmp_path: Path, columns: str) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(PAIR) + "\n")
    result = invoke("import", tmp_path / "in.jsonl", "--columns", columns)
    assert isinstance(result.exception, UsageError)
    assert "expected NAME=COLUMN" in str(result.exception)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"ask": "q", "good": "a", "bad": "b"}, "--columns prompt=COLUMN,chosen=COLUMN"),
        ({"messages": [{"role": "user", "content": "q"}]}, "one answer and no verdict"),
        (
            {"prompt": "q", "answers": ["a", "b"], "marks": [2, 1]},
            "it has a number for each answer in 'marks': --columns scores=marks where the",
        ),
        ({"prompt": "q", "answers": ["a", "b"], "best": 1}, "--columns prompt=COLUMN"),
        ({"prompt": "q", "answers": ["5", "7"]}, "no choice has been made yet"),
        ({"data": [PAIR]}, "it holds rows in 'data'; write those alone"),
        ({"prompt": "q", "completion": "a"}, "one answer and no verdict"),
        ({"instruction": "q", "input": "", "output": "a"}, "one answer and no verdict"),
    ],
)
def test_an_unknown_shape_is_one_line_with_a_way_out(
    tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    result = invoke("import", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert isinstance(result.exception, DataError)
    message = str(result.exception)
    assert message.startswith(f"{tmp_path / 'in.jsonl'}:1: the shape of its rows is not known (")
    assert said in message
    assert "\n" not in message


def test_a_named_format_says_what_a_row_of_another_shape_lacks(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(PAIR) + "\n")
    result = invoke("import", tmp_path / "in.jsonl", "--format", "shp")
    assert "1 missing-key" in str(result.exception)
    assert "no row of the format shp; such rows have history, human_ref_A" in result.stderr


def test_a_prompt_beside_dialogues_is_one_of_their_turns(tmp_path: Path) -> None:
    dialogue = [{"role": role, "content": text} for role, text in (("system", "S"), ("user", "Q?"))]
    answers = ({"role": "assistant", "content": text} for text in "ab")
    chosen, rejected = ([*dialogue, answer] for answer in answers)
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"prompt": "Q?", "chosen": chosen, "rejected": rejected}) + "\n")
    _, _, (pair,) = run_import(file, tmp_path / "out.jsonl")
    assert pair.prompt == (Message("system", "S"), user("Q?"))
