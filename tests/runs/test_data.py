"""The pairs of a run: an account that adds up, and a split that depends on texts alone."""

import errno
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.convert.sources import load_tokenizer
from mlx_dpo.errors import DataError, DiskError
from mlx_dpo.preferences.chat import ChatFormat, chat_format
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.preferences.store import lengths
from mlx_dpo.runs import data
from mlx_dpo.runs.data import Data, load_data
from tests.runs.conftest import ORACLE, ROWS, settings


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_format(load_tokenizer(ORACLE))


def load(chat: ChatFormat, **changes: Any) -> Data:
    return load_data(settings(**changes), chat)


def write(name: str, rows: list[dict[str, str]]) -> None:
    Path(name).write_text(json.dumps(rows))


def test_each_row_is_on_one_side_or_counted(workplace: Path, chat: ChatFormat) -> None:
    write("pairs.json", [*ROWS, {**ROWS[0], "chosen": "No.", "user": "Alike?"}])
    data = load(chat)
    assert data.account.read == 15
    assert data.account.dropped == {"equal": 1}
    assert len(data.train.examples) + len(data.held_out.examples) == 14
    ids = [*data.train.ids, *data.held_out.ids]
    assert len(set(ids)) == len(ids) == 14
    assert data.account.num_closed == 2 * 14
    assert data.account.num_cut == 0


def test_who_is_held_out_does_not_depend_on_the_length(workplace: Path, chat: ChatFormat) -> None:
    """Or runs that differ in it would be judged on other pairs, and trained on each other's."""
    long = load(chat)
    middling = int(np.median(lengths(long.train.examples)[:, 0]))
    short = load(chat, max_length=middling)
    assert short.account.dropped.total() > 0
    assert set(short.held_out.ids) <= set(long.held_out.ids)
    assert set(short.train.ids) <= set(long.train.ids)
    assert len(long.held_out.ids) > 0


def test_examples_ids_and_kinds_stand_in_the_same_order(workplace: Path, chat: ChatFormat) -> None:
    data = load(chat)
    for side in (data.train, data.held_out):
        for example, name, kind in zip(side.examples, side.ids, side.kinds, strict=True):
            row = ROWS[int(name) - 1]  # without an id of its own, a row's is its number
            assert kind == row["kind"]
            assert row["user"] in chat.tokenizer.decode(example.prompt_ids)
            assert row["chosen"] in chat.tokenizer.decode(example.chosen_ids)
            assert row["rejected"] in chat.tokenizer.decode(example.rejected_ids)


def test_held_out_pairs_that_are_trained_on_are_told_and_left_out(
    workplace: Path, chat: ChatFormat
) -> None:
    write("train.json", ROWS[:9])
    write("held.json", ROWS[7:])
    reported: list[Problems] = []
    config = settings(data="train.json", eval_data="held.json", drop_bad=True)
    data = load_data(config, chat, report=reported.append)
    assert reported[0].counts == {"leak": 2}
    assert data.account.dropped == {"leak": 2}
    assert (len(data.train.examples), len(data.held_out.examples)) == (9, 5)
    assert data.account.read == 9 + 7
    with pytest.raises(DataError, match="leak"):
        load(chat, data="train.json", eval_data="held.json")


def test_the_digest_is_that_of_the_ids_and_of_the_split(workplace: Path, chat: ChatFormat) -> None:
    first = load(chat)
    assert load(chat).digest == first.digest
    assert load(chat, eval_fraction=0.0).digest != first.digest
    write("pairs.json", [{**ROWS[0], "chosen": "Another."}, *ROWS[1:]])
    assert load(chat).digest != first.digest


def test_a_file_with_errors_is_refused_and_told_first(workplace: Path, chat: ChatFormat) -> None:
    write("pairs.json", [*ROWS, {"user": "And then?"}])
    reported: list[Problems] = []
    with pytest.raises(DataError, match="missing-key"):
        load_data(settings(), chat, report=reported.append)
    assert reported[0].counts["missing-key"] > 0
    data = load(chat, drop_bad=True)
    assert data.account.read == 15
    assert data.account.dropped == {"missing-key": 1}


def test_no_pair_left_says_why(workplace: Path, chat: ChatFormat) -> None:
    with pytest.raises(DataError, match=r"no pair is left to train on \(14 too-long"):
        load(chat, max_length=4)


class FullDisk(io.RawIOBase):
    """A file without room."""

    def writable(self) -> bool:
        return True

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("num_bad", [1, 200])  # within the log's buffer, and beyond it
def test_no_room_for_the_log_of_problems_is_an_error_of_that_file(
    workplace: Path, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch, num_bad: int
) -> None:
    write("pairs.json", [*ROWS, *[{"user": "And then?"}] * num_bad])
    monkeypatch.setattr(data, "TemporaryFile", lambda: io.BufferedWriter(FullDisk()))
    with pytest.raises(DiskError, match=r"^a temporary file: not written: No space left on device"):
        load(chat, drop_bad=True)


def test_another_error_of_the_system_is_not_one_of_the_temporary_folder(
    workplace: Path, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")  # no process left

    monkeypatch.setattr(data, "token_store", fail)
    with pytest.raises(BlockingIOError, match="Resource temporarily unavailable"):
        load(chat)


def test_shown_prompts_are_of_kinds_that_are_trained_on(workplace: Path, chat: ChatFormat) -> None:
    write("train.json", ROWS[:4])
    write("valid.json", [*({**row, "kind": "sums"} for row in ROWS[4:10]), *ROWS[10:]])
    data = load(chat, data="train.json", eval_data="valid.json")
    assert data.untaught == ("sums",)
    assert {pair.question for pair in data.shown} == {row["user"] for row in ROWS[10:]}
