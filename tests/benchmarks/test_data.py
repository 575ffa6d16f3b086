"""Pairs are the same every time, and what is counted as the tokenizer's is what encodes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import data
from mlx_dpo.convert.sources import load_tokenizer
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.records import Message, Preference
from tests.runs.conftest import ORACLE


def test_rows_are_the_same_every_time_and_all_different() -> None:
    rows = list(data.rows(30))
    assert rows == list(data.rows(30))
    assert len({row["prompt"] for row in rows}) == 30


def test_a_timed_tokenizer_encodes_as_before_and_counts_each_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(data, "time", SimpleNamespace(process_time=lambda: next(clock)))
    texts = [(Message(role, text),) for role, text in (("user", "Hi."), ("assistant", "A fox."))]
    pairs = [Preference(texts[0], texts[1], (Message("assistant", "No."),), "a", "1")]
    tokenizer = load_tokenizer(ORACLE)
    timed = data.Timed(tokenizer)
    encoded = encode_preferences(pairs, chat_format(timed), max_length=64).examples
    assert encoded == encode_preferences(pairs, chat_format(tokenizer), max_length=64).examples
    assert timed.backend_tokenizer.seconds == 1


def test_a_second_load_finds_the_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data.rows(20)))
    first, second = (data.measure("pairs.jsonl", str(ORACLE), visit=True) for _ in range(2))
    assert first["rows"] == second["rows"] == 20
    assert first["tokens"] == second["tokens"] > 20 * 100
    assert second["tokenizer"] == 0
