"""Preference files: what is accepted, and one line with the place for each thing that is not."""

import json
from collections import Counter
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import DataError, MlxDpoError, UsageError
from mlx_dpo.preferences import read_preferences
from mlx_dpo.preferences.json_text import MAX_ROW, Finding
from mlx_dpo.preferences.reader import read_rows
from mlx_dpo.preferences.schema import KEYS, Problems, read_preference
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


@pytest.mark.parametrize(("own", "name"), [(None, "1"), (7.0, "7"), (7, "7"), ("7.0", "7.0")])
def test_an_id_may_be_null_or_a_whole_number(tmp_path: Path, own: Any, name: str) -> None:
    pair = read_row(tmp_path, without(id=own, kind=None))
    assert (pair.id, pair.kind) == (name, "")


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


BAD_ROWS: list[tuple[Any, int, str, str]] = [
    (without("chosen"), 1, "missing-key", "key 'chosen' is missing; found ['kind', 'reje"),
    (without("rejected"), 1, "missing-key", "key 'rejected' is missing"),
    (without("chosen", chosne="x"), 1, "missing-key", "did you mean it by 'chosne'?"),
    (without("user"), 1, "missing-key", "key 'prompt' (or 'user') is missing"),
    (without(prompt="Hi"), 18, "duplicate-key", "has both 'prompt' and 'user'; keep one"),
    (without(user=7), 18, "wrong-type", "'user' must be text or a list of messages, found a"),
    (without(chosen=None), 32, "wrong-type", "'chosen' must be text or a list of messages"),
    (without(rejected=[]), 52, "wrong-type", "'rejected' must be text or a list of messages"),
    (without(chosen=["no"]), 32, "wrong-type", "'chosen' holds a message without 'role' or"),
    (without(rejected=[{"role": "assistant"}]), 52, "wrong-type", "'rejected' holds a message"),
    (
        without(chosen=[{"role": "assistant", "content": 1}]),
        *(32, "wrong-type", "'chosen' must be text, found a number"),
    ),
    (without(kind=3), 2, "wrong-type", "'kind' must be text, found a number"),
    (without(id=True), 70, "wrong-type", "'id' must be text, found true or false"),
    (without(id=1.5), 70, "wrong-type", "'id' must be text, found a number"),
    (without(chosen="\ud83d"), 32, "lone-surrogate", "'chosen' holds half of a surrogate pair"),
    (
        without("user", chosen=[user("a"), assistant("x")], rejected=[user("b"), assistant("y")]),
        *(1, "missing-key", "key 'prompt' (or 'user') is missing"),
    ),
    ("text", 1, "not-object", "expected an object, found text"),
    ([ROW], 1, "not-object", "expected an object, found a list"),
    (None, 1, "not-object", "expected an object, found null"),
]
bad_rows = pytest.mark.parametrize(
    ("row", "column", "code", "message"), BAD_ROWS, ids=[message for *_, message in BAD_ROWS]
)


@bad_rows
def test_a_bad_line_is_named_by_line_column_and_code(
    tmp_path: Path, row: Any, column: int, code: str, message: str
) -> None:
    """Blank lines count: the number is the one an editor shows."""
    content = "\n".join([json.dumps(ROW), "", json.dumps(row), json.dumps(ROW)])
    text = str(refusal(tmp_path, content))
    assert f"pairs.jsonl:3:{column}: {code}: " in text
    assert message in text


@bad_rows
def test_a_bad_row_of_an_array_is_named_by_the_same(
    tmp_path: Path, row: Any, column: int, code: str, message: str
) -> None:
    content = f"[{json.dumps(ROW)},\n{json.dumps(row)},\n{json.dumps(ROW)}]"
    text = str(refusal(tmp_path, content))
    assert f"pairs.jsonl:2:{column}: {code}: " in text
    assert message in text


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (json.dumps(ROW) + '\n{"user": }\n', ":2:10: bad-json: not JSON: Expecting value"),
        (json.dumps(ROW) + "\n\n\n" + json.dumps(ROW)[:-1], ":4:68: bad-json: not JSON"),
        ('[\n{"user" "b"}\n]', ":2:9: bad-json: not JSON: Expecting ':' delimiter"),
        ("[" + json.dumps(ROW), ":1:70: bad-json: not JSON"),
        ("user: Hi", ":1:1: bad-json: not JSON"),
        ("[" * 100_000, ":1:2: bad-json: not usable JSON: nested too deeply"),
        (json.dumps(ROW) + '\n{"id": ' + "9" * 5000 + "}", ":2:1: bad-json: not usable JSON"),
        ('[{"id": ' + "9" * 5000 + "}]", ":1:2: bad-json: not usable JSON"),
    ],
    ids=[
        *("line", "cut off", "array", "open array", "no JSON", "nested"),
        *("number without end in a line", "number without end in an array"),
    ],
)
def test_broken_json_is_named_by_its_line(tmp_path: Path, content: str, place: str) -> None:
    assert f"pairs.jsonl{place}" in str(refusal(tmp_path, content))


def test_every_problem_of_a_file_is_found_in_one_pass(tmp_path: Path) -> None:
    rows = [ROW, without("chosen"), "text", without(kind=3), without(user="Ho", chosen="no")]
    file = write(tmp_path, "\n".join(map(json.dumps, rows)))
    problems = Problems()
    found = list(read_rows(file, problems))
    assert [row.code for row in found] == [None, "missing-key", "not-object", "wrong-type", "equal"]
    assert [(p.line, p.code) for p in problems.shown()] == [
        *((2, "missing-key"), (3, "not-object"), (4, "wrong-type"), (5, "equal"))
    ]


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (ROW, "duplicate-pair"),
        (without(chosen="no", rejected="Hello!"), "contradiction"),
        (without(user="Ho", id="1"), "duplicate-id"),
    ],
)
def test_rows_are_compared_with_those_before(tmp_path: Path, second: Any, code: str) -> None:
    problems = Problems()
    list(read_rows(write(tmp_path, f"{json.dumps(ROW)}\n{json.dumps(second)}"), problems))
    assert problems.counts == {code: 1}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"user": "Hi", "chosen": "a", "chosen": "b", "rejected": "c"}', "duplicate-key"),
        ('{"user": "Hi", "chosen": "a", "rejected": "c", "score": NaN}', "nan"),
        ('{"user": "Hi", "chosen": "a", "rejected": "c", "score": 1}', "unknown-key"),
        ('{"user": "Hi", "chosen": "a\\u0007", "rejected": "c"}', "control-character"),
        ('{"user": "Hi", "chosen": "", "rejected": "c"}', "empty"),
        ('{"user": "Hi", "chosen": " ", "rejected": "c"}', "whitespace-only"),
        ('{"user": "Hi", "chosen": "' + "a" * MAX_ROW + '", "rejected": "c"}', "line-too-long"),
    ],
    ids=lambda value: value if len(value) < 20 else "line",
)
def test_each_oddity_of_a_row_has_its_code(tmp_path: Path, line: str, code: str) -> None:
    problems = Problems()
    list(read_rows(write(tmp_path, line), problems))
    assert code in problems.counts


def test_a_key_of_a_message_is_named_once_and_calls_are_refused(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows: list[Any] = [
        {"prompt": "q", "chosen": [{"role": "assistant", "content": "a", "name": "x"}]},
        {"prompt": "r", "chosen": [{"role": "assistant", "content": "a", "name": "y"}]},
        {"prompt": "s", "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}]},
        {"prompt": "t", "chosen": [{"role": "assistant", "content": "a", "tool_calls": []}]},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({**row, "rejected": "b"}) + "\n" for row in rows))
    problems = Problems()
    assert len(read_preferences(file, problems, drop_bad=True)) == 3
    assert problems.counts == Counter({"unknown-key": 1, "wrong-type": 1})
    said = [problem.reason for problem in problems.shown()]
    assert said[0] == "'chosen' holds a message with 'tool_calls'; pairs are of plain text"
    assert said[1] == "'name' of a message of 'chosen' is not used, here and in later rows"


@pytest.mark.parametrize(
    ("cell", "name"),
    [(b"Hi", "bytes"), (datetime(2026, 1, 1), "datetime"), (Decimal("1.5"), "Decimal")],
)
def test_a_cell_of_a_type_that_json_does_not_have_is_a_wrong_type(cell: Any, name: str) -> None:
    """As Parquet's columns of binary, timestamps and decimals give them."""
    findings: list[Finding] = []
    row = {"prompt": cell, "chosen": "a", "rejected": [{"role": "assistant", "content": cell}]}
    assert read_preference(row | {"id": cell}, 1, set(KEYS), findings) is None
    assert [finding.code for finding in findings] == ["wrong-type"] * 3
    assert all(finding.reason.endswith(f"a value of type {name}") for finding in findings)


@pytest.mark.parametrize("content", ["", " \n\n", "\ufeff"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    assert "the file is empty" in str(refusal(tmp_path, content))


def test_an_empty_array_is_refused(tmp_path: Path) -> None:
    assert "no pairs in the file" in str(refusal(tmp_path, "[]"))


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path) -> None:
    assert ":1:4: bad-utf8: byte 0xe9 is not UTF-8" in str(
        refusal(tmp_path, b'{"\xc3\xa9\xff"}'[:2] + b" \xe9")
    )


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


def test_errors_refuse_a_file_or_with_drop_bad_its_rows(tmp_path: Path) -> None:
    """As in training: of a contradiction both rows go, of an id that comes twice the second."""
    rows = [
        ROW,
        without("chosen"),
        without(user="Ho", chosen="no"),  # chosen equals rejected, which is no error
        without(chosen="no", rejected="Hello!"),
        without(user="He", id="3"),
    ]
    file = write(tmp_path, "\n".join(map(json.dumps, rows)))
    text = str(refusal(tmp_path, file.read_bytes()))
    assert ":2:1: missing-key" in text
    assert "(the first of 3 errors in 5 rows)" in text
    assert "--drop-bad leaves such rows out" in text
    problems = Problems()
    assert [row.id for row in read_preferences(file, problems, drop_bad=True)] == ["3"]
    assert problems.errors == {"missing-key": 1, "contradiction": 1, "duplicate-id": 1}
    alone = read_preferences(file, drop_bad=True, compare=False)
    assert [row.id for row in alone] == ["1", "3", "4", "3"]


def test_a_broken_array_is_refused_even_with_drop_bad(tmp_path: Path) -> None:
    file = write(tmp_path, f"[{json.dumps(ROW)}, {{")
    with pytest.raises(DataError, match=r"the rest of the array was not read; correct this first$"):
        read_preferences(file, drop_bad=True)
