"""Where things stand in a file, what ends an array, and that lines take little memory."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.errors import UsageError
from mlx_dpo.preferences import json_text
from mlx_dpo.preferences.json_text import (
    Finding,
    RawRow,
    check_readable,
    file_findings,
    offset_of_key,
    raw_rows,
)

ROW = {"user": "Hi", "chosen": "Hello!", "rejected": "no"}


def rows_of(path: Path, content: str | bytes) -> list[RawRow]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(raw_rows(path))


@pytest.mark.parametrize(
    ("source", "key", "offset"),
    [
        ('{"kind": "chosen", "chosen": 1}', "chosen", 19),
        ('{"user": "say \\"chosen\\": 1", "chosen": 1}', "chosen", 30),
        ('{"user": {"chosen": 2}, "chosen": 1}', "chosen", 24),
        ('{"user": {"a": 2, "a": 3}}', "a", 10),
        ('{"cho\\u0073en": 1}', "chosen", 1),
        ('{"größe": 1}', "größe", 1),
        ('{"a":1,"b" \n : 2}', "b", 7),
        ('["chosen"]', "chosen", 0),
    ],
    ids=[
        *("a value", "inside a text", "an inner object", "only in an inner object"),
        *("escaped", "not ASCII", "white space", "no such key"),
    ],
)
def test_the_place_of_a_key_is_its_own(source: str, key: str, offset: int) -> None:
    assert offset_of_key(source, key) == offset


def test_objects_of_several_lines_are_rows(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(ROW, indent=1) for _ in range(2))
    assert [(row.value, row.line) for row in rows_of(tmp_path / "f", text)] == [(ROW, 1), (ROW, 6)]
    assert len(rows_of(tmp_path / "f", text[:-1])) == 9


def test_the_place_of_a_repeated_key_is_the_second(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "f", '{"chosen": "a",\t"chosen": "b"}')
    assert [row.place(finding) for finding in row.findings] == [(1, 17)]


def test_the_place_of_nan_is_the_literal_and_no_word(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "f", '{"user": "NaN", "chosen": NaN}')
    assert [row.place(finding) for finding in row.findings] == [(1, 27)]


def test_the_place_in_a_row_of_many_lines_is_that_of_an_editor(tmp_path: Path) -> None:
    text = json.dumps([ROW, {**ROW, "chosen": 1}], indent=2)
    _, second = rows_of(tmp_path / "f", text)
    line, column = second.place(Finding("wrong-type", "chosen", ""))
    assert text.splitlines()[line - 1][column - 1 :].startswith('"chosen": 1')


@given(
    rows=st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.floats(-9, 9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        min_size=1,
        max_size=6,
    ),
    indent=st.sampled_from([None, 1]),
)
def test_an_array_read_row_by_row_is_what_json_reads(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "f"
    text = json.dumps(rows, ensure_ascii=False, indent=indent)
    found = rows_of(path, text)
    assert [row.value for row in found] == rows
    for row in found:  # and each stands where it is said to
        line = text.splitlines()[row.line - 1] if indent else text
        assert line[row.column - 1 :].startswith(row.source.splitlines()[0] if indent else "")
        assert json.loads(row.source) == row.value


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        (b"[]", []),
        (b"[1, 2] x", [None, None, "bad-json"]),
        (b"[1, 2]]", [None, None, "bad-json"]),
        (b"[1, 2,]", [None, None, "bad-json"]),
        (b"[1, 2", [None, "bad-json"]),
        (b"[1 2]", ["bad-json"]),
        (b'[1, "\xff"]', [None, "bad-utf8"]),
        (b'[1, "\xc3', [None, "bad-utf8"]),
        (b"[1]\xff", [None, "bad-json"]),
        (b"[", ["bad-json"]),
        (b'["a", "b]', [None, "bad-json"]),
        (b"[1, -Infinity, tru]", [None, "nan", "bad-json"]),
    ],
)
def test_an_array_ends_at_what_cannot_be_read(
    tmp_path: Path, content: bytes, codes: list[str | None]
) -> None:
    """The rows before it are rows."""
    found = rows_of(tmp_path / "f", content)
    assert [row.findings[0].code if row.findings else None for row in found] == codes
    assert [row.ends for row in found] == [code in ("bad-json", "bad-utf8") for code in codes]


@pytest.mark.parametrize("content", [b'["' + b"a" * 5000 + b'"]', b'["' + b"a" * 50_000])
def test_a_row_of_an_array_that_is_too_long_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(json_text, "MAX_ROW", 1000)
    (row,) = rows_of(tmp_path / "f", content)
    assert row.ends
    assert [finding.code for finding in row.findings] == ["line-too-long"]


def test_a_large_file_of_lines_is_read_in_little_memory(tmp_path: Path) -> None:
    """Twenty megabytes; whole, as bytes and as text, they would be forty."""
    line = json.dumps({**ROW, "user": "a" * 1000})
    (tmp_path / "f").write_text("\n".join([line] * 20_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in raw_rows(tmp_path / "f")) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_large_array_gets_an_advice_and_large_lines_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "array").write_text(f"\n [{json.dumps(ROW)}]")
    (tmp_path / "lines").write_text(json.dumps(ROW))
    assert file_findings(tmp_path / "array") == []
    monkeypatch.setattr(json_text, "LARGE_ARRAY", 10)
    (finding,) = file_findings(tmp_path / "array")
    assert finding.code == "large-array"
    assert "write JSON lines" in finding.hint
    assert file_findings(tmp_path / "lines") == []


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="is a pipe or device"):
            check_readable(name)
