"""Preference files: what is accepted, and one line with the place for each thing that is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import DataError, MlxDpoError, UsageError
from mlx_dpo.preferences import read_preferences
from mlx_dpo.records import Message, Preference

ROW = {"kind": "tone", "user": "Hi", "chosen": "Hello!", "rejected": "no"}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**ROW, **changes}.items() if key not in keys}


def write(folder: Path, content: str | bytes) -> Path:
    file = folder / "pairs.jsonl"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def read(folder: Path, content: str | bytes) -> list[Preference]:
    return read_preferences(write(folder, content))


def read_row(folder: Path, row: dict[str, Any]) -> Preference:
    (found,) = read(folder, json.dumps(row))
    return found


PLAIN = Preference(
    prompt=(Message("user", "Hi"),),
    chosen=(Message("assistant", "Hello!"),),
    rejected=(Message("assistant", "no"),),
    kind="tone",
    id="1",
)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([ROW]),
        json.dumps([ROW], indent=2),
        json.dumps(ROW),
        json.dumps(ROW) + "\n",
        "\n\n" + json.dumps(ROW) + "\r\n\r\n",
        "\ufeff" + json.dumps([ROW]),
        "\ufeff" + json.dumps(ROW),
        json.dumps(without("user", prompt="Hi")),
        json.dumps(without("user", prompt=[user("Hi")])),
        json.dumps({**ROW, "chosen": [assistant("Hello!")], "rejected": [assistant("no")]}),
        json.dumps(
            without(
                "user",
                chosen=[user("Hi"), assistant("Hello!")],
                rejected=[user("Hi"), assistant("no")],
            )
        ),
        json.dumps({**ROW, "source": "a key nobody asked for"}),
    ],
    ids=[
        *("array", "indented array", "one line", "newline at the end", "blank lines", "BOM, array"),
        *("BOM, lines", "prompt", "prompt of messages", "answers of messages", "shared turns"),
        "unknown key",
    ],
)
def test_all_spellings_of_a_pair_read_alike(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content) == [PLAIN]


def test_rows_keep_their_order_and_are_numbered_unless_named(tmp_path: Path) -> None:
    rows = [{**ROW, "user": "a"}, {**ROW, "user": "b", "id": "mine"}, {**ROW, "user": "c", "id": 9}]
    for content in (json.dumps(rows), "\n".join(map(json.dumps, rows))):
        found = read(tmp_path, content)
        assert [row.question for row in found] == ["a", "b", "c"]
        assert [row.id for row in found] == ["1", "mine", "9"]


def test_a_row_without_kind_has_the_empty_kind(tmp_path: Path) -> None:
    assert read_row(tmp_path, without("kind")).kind == ""


def test_shared_turns_become_the_prompt_and_whole_turns_only(tmp_path: Path) -> None:
    """Never a part of a turn, and never the whole of an answer."""
    begin = [
        {"role": "system", "content": "Be brief."},
        user("Hi"),
        assistant("Yes?"),
        user("Wet?"),
    ]
    found = read_row(
        tmp_path,
        without("user", chosen=[*begin, assistant("No.")], rejected=[*begin, assistant("None.")]),
    )
    assert [turn.role for turn in found.prompt] == ["system", "user", "assistant", "user"]
    assert found.chosen == (Message("assistant", "No."),)
    assert found.rejected == (Message("assistant", "None."),)


def test_equal_dialogues_keep_their_last_turn_as_answer(tmp_path: Path) -> None:
    dialogue = [user("Hi"), assistant("Hello!")]
    found = read_row(tmp_path, without("user", chosen=dialogue, rejected=dialogue))
    assert found.prompt == (Message("user", "Hi"),)
    assert found.chosen == found.rejected == (Message("assistant", "Hello!"),)


@pytest.mark.parametrize("text", ["", "\u2028", "line\nline", "é 🙂", "<|end|>"])
def test_texts_arrive_as_they_are(tmp_path: Path, text: str) -> None:
    """U+2028 is a line break to Python's splitlines, but not to JSON."""
    row = json.dumps({**ROW, "chosen": text}, ensure_ascii=False)
    (found,) = read(tmp_path, row)
    assert found.chosen[0].content == text


def refusal(folder: Path, content: str | bytes) -> DataError:
    """The error a file raises; it is one line that begins with the file."""
    with pytest.raises(DataError) as raised:
        read(folder, content)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(str(folder / "pairs.jsonl"))
    assert raised.value.exit_code == 3
    return raised.value


BAD_ROWS: list[tuple[Any, str]] = [
    (without("chosen"), "key 'chosen' is missing; found ['kind', 'rejected', 'user']"),
    (without("rejected"), "key 'rejected' is missing"),
    (without("user"), "key 'prompt' (or 'user') is missing"),
    (without(prompt="Hi"), "has both 'prompt' and 'user'; keep one"),
    (without(user=7), "'user' must be a string or a list of messages"),
    (without(chosen=None), "'chosen' must be a string or a list of messages"),
    (without(rejected=[]), "'rejected' must be a string or a list of messages"),
    (without(chosen=["no"]), "'chosen': a message needs 'role' and 'content'"),
    (without(rejected=[{"role": "assistant"}]), "'rejected': a message needs 'role' and 'content'"),
    (without(chosen=[{"role": "assistant", "content": 1}]), "'chosen' must be text, found int"),
    (without(kind=3), "'kind' must be text, found int"),
    (without(id=True), "'id' must be text, found bool"),
    (without(id=1.5), "'id' must be text, found float"),
    (without(chosen="\ud83d"), "'chosen' holds half of a surrogate pair"),
    (
        without("user", chosen=[user("a"), assistant("x")], rejected=[user("b"), assistant("y")]),
        "key 'prompt' (or 'user') is missing",
    ),
    ("text", "expected an object, found str"),
    ([ROW], "expected an object, found list"),
    (None, "expected an object, found NoneType"),
]
bad_rows = pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[m for _, m in BAD_ROWS])


@bad_rows
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, row: Any, message: str) -> None:
    """Blank lines count: the number is the one an editor shows."""
    content = "\n".join([json.dumps(ROW), "", json.dumps(row), json.dumps(ROW)])
    assert f"pairs.jsonl:3: {message}" in str(refusal(tmp_path, content))


@bad_rows
def test_a_bad_row_of_an_array_is_named_by_its_number(
    tmp_path: Path, row: Any, message: str
) -> None:
    content = json.dumps([ROW, row, ROW], indent=1)
    assert f"pairs.jsonl: row 2: {message}" in str(refusal(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (json.dumps(ROW) + '\n{"user": }\n', ":2: not JSON: Expecting value (column 10)"),
        (json.dumps(ROW) + "\n\n\n" + json.dumps(ROW)[:-1], ":4: not JSON"),
        ('[\n{"user": "a"},\n{"user" "b"}\n]', ":3: not JSON: Expecting ':' delimiter (column 9)"),
        ("[" + json.dumps(ROW), ":1: not JSON"),
        ("user: Hi", ":1: not JSON"),
        ("[" * 100_000, ":1: not usable JSON: nested too deeply"),
        (json.dumps(ROW) + '\n{"id": ' + "9" * 5000 + "}", ":2: not usable JSON"),
        ('[{"id": ' + "9" * 5000 + "}]", ":1: not usable JSON"),
    ],
    ids=[
        *("line", "cut off", "array", "open array", "no JSON", "nested"),
        *("number without end in a line", "number without end in an array"),
    ],
)
def test_broken_json_is_named_by_its_line(tmp_path: Path, content: str, place: str) -> None:
    assert f"pairs.jsonl{place}" in str(refusal(tmp_path, content))


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    assert "the file is empty" in str(refusal(tmp_path, content))


def test_an_empty_array_is_refused(tmp_path: Path) -> None:
    assert "no pairs in the file" in str(refusal(tmp_path, "[]"))


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path) -> None:
    assert "byte 3 is not UTF-8" in str(refusal(tmp_path, b'{"\xc3\xa9\xff"}'[:2] + b" \xe9"))


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere.json", "no such file"), ("", "is a folder")]
)
def test_a_path_that_is_no_file_is_an_error_of_usage(
    tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        read_preferences(tmp_path / name)
    assert raised.value.exit_code == 2
    assert isinstance(raised.value, MlxDpoError)
    assert "\n" not in str(raised.value)
