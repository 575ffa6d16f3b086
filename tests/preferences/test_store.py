"""A store gives back what was written to it, or nothing at all."""

import hashlib
import json
from collections import Counter
from io import StringIO
from mmap import mmap
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from mlx_dpo.preferences.encoding import Ingested, RowTable, ids_as_bytes
from mlx_dpo.preferences.schema import Problem, Problems
from mlx_dpo.preferences.store import (
    JoinedExamples,
    StoredExamples,
    TokenStore,
    lengths,
    open_store,
    seal,
)
from mlx_dpo.records import PreferenceExample

PAIRS = [
    PreferenceExample([7, 8, 9], [1], [2, 3]),
    PreferenceExample([], [], []),  # a row left out
    PreferenceExample([5], [70_000, 6], [4]),
    PreferenceExample([1, 1], [2], []),
]
KINDS = ["tone", "format", "tone", ""]
IDS = ["first", "", "dritte Zeile: ü", "4"]


def write(folder: Path, key: str = "key") -> None:
    table = RowTable()
    with (folder / "tokens.bin").open("wb") as tokens:
        for number, pair in enumerate(PAIRS, 1):
            prompt = bytes([number]) * 16
            row = table.add(number, 10 * number, KINDS[number - 1], IDS[number - 1], prompt)
            table.add_bounds(pair)
            tokens.write(ids_as_bytes(pair))
            if number == 2:
                table.leave_out(row, "equal")
                table.leave_out(row, "too-long")  # the first reason stays
    with (folder / "problems.jsonl").open("w") as log:
        Problems(log).add(Problem("old.json", 20, 1, 2, "equal", "alike", ""))
    seal(folder, key, Ingested(5, Counter({"bad-json": 1}), table), cut_short=False)


def opened(folder: Path) -> TokenStore:
    store = open_store(folder, "key")
    assert store is not None
    return store


def test_a_store_gives_back_what_was_written(tmp_path: Path) -> None:
    write(tmp_path)
    store = opened(tmp_path)
    rows = np.arange(4)
    assert list(store.examples(rows)) == PAIRS
    assert store.ids_of(rows) == IDS
    assert store.kinds_of(rows) == KINDS
    assert store.prompts() == [bytes([number]) * 16 for number in (1, 2, 3, 4)]
    assert store.columns["line"].tolist() == [10, 20, 30, 40]
    assert store.largest_id == 70_000
    assert store.is_kept.tolist() == [True, False, True, True]
    assert store.dropped == {"bad-json": 1, "equal": 1}
    assert store.read == store.is_kept.sum() + store.dropped.total()


def test_ids_and_problems_stay_on_the_disk(tmp_path: Path) -> None:
    write(tmp_path)
    store, log = opened(tmp_path), StringIO()
    assert isinstance(store.tokens, np.memmap)
    assert isinstance(store.log, mmap)
    for _ in range(2):
        store.report(Problems(log), "new.json")
    first, second = log.getvalue().splitlines()
    assert first == second
    assert json.loads(first)["file"] == "new.json"


def test_its_problems_are_reported_under_the_name_the_file_has_now(tmp_path: Path) -> None:
    write(tmp_path)
    problems = Problems()
    opened(tmp_path).report(problems, "new.json")
    assert [str(problem) for problem in problems.shown()] == ["new.json:20:1: equal: alike"]


def test_a_store_without_a_token_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "tokens.bin").touch()
    (tmp_path / "problems.jsonl").touch()
    seal(tmp_path, "key", Ingested(), cut_short=False)
    store = opened(tmp_path)
    assert (len(store), store.tokens.size, store.largest_id) == (0, 0, -1)


def test_another_key_is_another_store(tmp_path: Path) -> None:
    write(tmp_path, "another")
    assert open_store(tmp_path, "key") is None


@pytest.mark.parametrize("name", ["tokens.bin", "rows.safetensors", "problems.jsonl"])
@pytest.mark.parametrize("damage", ["a flipped bit", "a byte less", "a byte more", "gone"])
def test_one_damaged_byte_and_nothing_is_believed(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path)
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    if damage == "a flipped bit":
        content[len(content) // 2] ^= 1
    elif damage == "a byte less":
        del content[-1]
    else:
        content.append(0)
    file.write_bytes(content)
    if damage == "gone":
        file.unlink()
    assert open_store(tmp_path, "key") is None


def test_a_changed_name_of_a_kind_is_not_believed(tmp_path: Path) -> None:
    write(tmp_path)
    record = tmp_path / "store.json"
    changed = {**json.loads(record.read_text()), "read": 41}
    record.write_text(json.dumps(changed))
    assert open_store(tmp_path, "key") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": "key"}', "{", "[" * 100_000])
def test_a_broken_record_is_no_store(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / "store.json").write_text(text)
    assert open_store(tmp_path, "key") is None


@pytest.mark.parametrize(
    ("column", "value"),
    [("bounds", 99), ("bounds", -1), ("id_bounds", 99), ("code", 250), ("kind", 3), ("kind", -1)],
)
def test_a_table_that_points_out_of_its_files_is_refused(
    tmp_path: Path, column: str, value: int
) -> None:
    """Even where size and sha256 agree, as after a fault of the program that wrote it."""
    write(tmp_path)
    columns = load_file(tmp_path / "rows.safetensors")
    columns[column][1] = np.array(value).astype(columns[column].dtype)
    _replace_table(tmp_path, columns)
    assert open_store(tmp_path, "key") is None


@pytest.mark.parametrize("fault", ["shorter", "missing", "of another type"])
def test_a_table_of_another_shape_is_refused(tmp_path: Path, fault: str) -> None:
    write(tmp_path)
    columns = load_file(tmp_path / "rows.safetensors")
    if fault == "shorter":
        columns["flags"] = columns["flags"][:-1]
    elif fault == "missing":
        del columns["flags"]
    else:
        columns["flags"] = columns["flags"].astype(np.int64)
    _replace_table(tmp_path, columns)
    assert open_store(tmp_path, "key") is None


def _replace_table(folder: Path, columns: dict[str, Any]) -> None:
    """Write a table under a record that vouches for it."""
    content = save(columns)
    (folder / "rows.safetensors").write_bytes(content)
    record = json.loads((folder / "store.json").read_text())
    sha256 = hashlib.sha256(content).hexdigest()
    record["files"]["rows.safetensors"] = {"size": len(content), "sha256": sha256}
    (folder / "store.json").write_text(json.dumps(record))


def test_a_table_that_is_vouched_for_is_taken(tmp_path: Path) -> None:
    """So that the refusals above are for what is in the table."""
    write(tmp_path)
    _replace_table(tmp_path, load_file(tmp_path / "rows.safetensors"))
    assert list(opened(tmp_path).examples(np.arange(4))) == PAIRS


pairs = st.builds(
    PreferenceExample, *(st.lists(st.integers(0, 2**31 - 1), max_size=5) for _ in range(3))
)


def stored(examples: list[PreferenceExample], rows: list[int]) -> StoredExamples:
    ids = [token for example in examples for part in example for token in part]
    ends = np.cumsum([0, *(len(part) for example in examples for part in example)])
    return StoredExamples(np.array(ids, np.int32), ends, np.array(rows, np.int64))


@given(st.lists(pairs, min_size=1, max_size=6), st.randoms())
def test_stored_pairs_read_like_a_list(examples: list[PreferenceExample], random: Random) -> None:
    rows = random.sample(range(len(examples)), len(examples))
    found, expected = stored(examples, rows), [examples[row] for row in rows]
    assert list(found) == expected
    assert found[-1] == expected[-1]
    assert found[1:] == expected[1:]
    assert lengths(found).tolist() == [list(map(len, pair)) for pair in expected]
    joined = JoinedExamples(found, expected[:1], [], found)
    assert list(joined) == [*expected, expected[0], *expected]
    assert joined[-1] == expected[-1]
    assert lengths(joined).tolist() == [list(map(len, pair)) for pair in joined]


@pytest.mark.parametrize("index", [2, -3, 10])
def test_an_index_past_the_end_is_an_error(index: int) -> None:
    examples = JoinedExamples(PAIRS[:1], PAIRS[1:2])
    with pytest.raises(IndexError):
        examples[index]
