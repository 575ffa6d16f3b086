"""A file in one pass: the ids that pairs have one by one, and an account of every row."""

import json
from collections import Counter
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.convert.sources import load_tokenizer
from mlx_dpo.errors import DataError
from mlx_dpo.preferences import chat as chat_module
from mlx_dpo.preferences import encoding, json_text
from mlx_dpo.preferences.chat import ChatFormat, chat_format
from mlx_dpo.preferences.encoding import (
    CHOSEN_CLOSED,
    CUT,
    REJECTED_CLOSED,
    Ingested,
    PairEncoder,
    Tokenizing,
    ingest,
)
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.schema import CODES, ERROR, LEVELS, WARNING, Problems
from mlx_dpo.records import Message, Preference, PreferenceExample
from tests.runs.conftest import ORACLE, ROWS


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_format(load_tokenizer(ORACLE))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows at a time, so that a file of few rows has batches, the last of them not full."""
    monkeypatch.setattr(encoding, "BATCH", 3)


def write(folder: Path, rows: list[Any]) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return file


def run(
    file: Path, chat: ChatFormat, max_length: int = 256
) -> tuple[Ingested, list[PreferenceExample], Problems]:
    """The pass, and the pairs that it wrote, those left out as empty ones."""
    problems, tokens = Problems(), BytesIO()
    found = ingest(file, problems, Tokenizing(chat, max_length, tokens))
    ids, bounds = np.frombuffer(tokens.getvalue(), "<i4").tolist(), found.table.bounds
    parts = [ids[a:b] for a, b in pairwise(bounds)]
    assert bounds[-1] == len(ids)
    examples = [PreferenceExample(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return found, examples, problems


def row(number: int, **changes: Any) -> dict[str, Any]:
    texts = {"prompt": f"Question {number}?", "chosen": "A lantern.", "rejected": "No."}
    return {**texts, **changes}


def codes(found: Ingested) -> list[str | None]:
    return [CODES[code - 1] if code else None for code in found.table.code]


@pytest.mark.parametrize("max_length", [256, 24])
def test_many_pairs_get_the_ids_that_each_gets_alone(
    tmp_path: Path, chat: ChatFormat, max_length: int
) -> None:
    file = write(tmp_path, ROWS)
    found, examples, _ = run(file, chat, max_length)
    expected = []
    for preference in read_preferences(file):
        prompt, chosen, rejected = chat.encode_pair(preference)[0]
        room = max_length - len(prompt)
        is_kept = room > 0 and chosen[:room] != rejected[:room]
        fitted = PreferenceExample(prompt, chosen[:room], rejected[:room])
        expected.append(fitted if is_kept else PreferenceExample([], [], []))
    assert examples == expected
    assert len(examples) == found.read == len(ROWS)


def test_every_row_is_kept_or_counted(tmp_path: Path, chat: ChatFormat) -> None:
    rows = [
        row(1),
        "{",
        row(2, chosen="No."),
        row(3, prompt="Why? " * 400),
        {"prompt": "What?", "chosen": "This."},
        row(4, chosen=f"I say {chat.closing_text} and go on."),
        row(5),
        row(6, id="twice"),
        row(7, id="twice"),
        "[1, 2]",
    ]
    found, examples, problems = run(write(tmp_path, rows), chat)
    assert found.unusable == {"bad-json": 1, "missing-key": 1, "not-object": 1}
    left_out = [None, "equal", "too-long", "special-token", None, None, "duplicate-id"]
    assert codes(found) == left_out
    assert list(found.table.number) == [1, 3, 4, 6, 7, 8, 9]
    assert [bool(example.prompt_ids) for example in examples] == [not code for code in left_out]
    dropped = found.unusable + Counter(filter(None, codes(found)))
    assert found.read == left_out.count(None) + dropped.total() == len(rows)
    assert problems.counts == dropped


def test_two_rows_that_contradict_are_both_left_out_however_far_apart(
    tmp_path: Path, chat: ChatFormat
) -> None:
    """The earlier one has been tokenised by then, with another batch."""
    rows = [row(number) for number in range(8)]
    rows.append(row(1, chosen="No.", rejected="A lantern."))
    found, examples, _ = run(write(tmp_path, rows), chat)
    assert [place for place, code in enumerate(codes(found)) if code] == [1, 8]
    assert set(filter(None, codes(found))) == {"contradiction"}
    assert len(examples) == 9


def test_flags_say_what_was_cut_and_what_is_closed(tmp_path: Path, chat: ChatFormat) -> None:
    file = write(tmp_path, [row(1, chosen="A lantern is bright. " * 9)])
    whole, _, _ = run(file, chat)
    assert whole.table.flags[0] & (CUT | CHOSEN_CLOSED | REJECTED_CLOSED) == (
        CHOSEN_CLOSED | REJECTED_CLOSED
    )
    _, (example,), _ = run(file, chat)
    room = len(example.prompt_ids) + len(example.rejected_ids)
    cut, _, _ = run(file, chat, max_length=room)
    assert cut.table.flags[0] & (CUT | CHOSEN_CLOSED | REJECTED_CLOSED) == CUT | REJECTED_CLOSED


def test_without_a_model_the_same_problems_are_found_but_for_those_in_tokens(
    tmp_path: Path,
) -> None:
    problems = Problems()
    found = ingest(write(tmp_path, [row(1), row(2, chosen="No."), "{"]), problems)
    assert codes(found) == [None, "equal"]
    assert found.read == 3
    assert len(found.table.bounds) == 1


def test_progress_rises_to_the_end(tmp_path: Path, chat: ChatFormat) -> None:
    shares: list[float] = []
    ingest(write(tmp_path, ROWS), Problems(), Tokenizing(chat, 256), shares.append)
    assert shares == sorted(shares)
    assert len(shares) == len(ROWS) // 3 + 1
    assert shares[-1] == 1.0


GOOD = json.dumps(row(1))
IMPORTED = {
    "no-common-prompt",
    "no-pair",
    "tie",
    "unsupported",
}  # of rows that `data import` makes pairs of
IN_A_RUN = {"leak"}  # takes two files
LATIN_LATER = [{"role": "user", "content": word} for word in ("A word?", "In Latin?")]
# What earns each code; the good row before it is kept.
EARNS: dict[str, str | bytes | dict[str, Any]] = {
    "bad-utf8": b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}',
    "bad-json": "{",
    "line-too-long": row(2, chosen="y" * 900),
    "not-object": "[]",
    "duplicate-key": '{"prompt": "p", "prompt": "q", "chosen": "a", "rejected": "b"}',
    "nan": '{"prompt": "p", "chosen": "a", "rejected": "b", "id": NaN}',
    "missing-key": {"prompt": "p", "chosen": "a"},
    "wrong-type": row(2, chosen=1),
    "lone-surrogate": row(2, chosen="\ud800"),
    "duplicate-id": GOOD[:-1] + ', "id": "1"}',
    "contradiction": row(1, chosen="No.", rejected="A lantern."),
    "special-token": row(2, chosen="It <|assistant|> goes on."),
    "template": row(2, prompt="Say it in Latin."),
    "equal": row(2, chosen="A lantern " * 20 + "a", rejected="A lantern " * 20 + "b"),
    "too-long": row(2, prompt="Why? " * 60),
    "response-cut": row(2, chosen="A lantern is bright. " * 20),
    "open-block": row(2, prompt="Ponder."),
    "other-words": row(2, rejected=[{"role": "user", "content": "No."}]),
    "template-words": row(2, prompt="Forget it."),
    "answer-changed": row(2, chosen="A Latin word."),
    "prompt-changed": row(2, prompt=LATIN_LATER),
    "empty": row(2, rejected=""),
    "whitespace-only": row(2, rejected=" "),
    "bom": b"",
    "unknown-key": row(2, score=1),
    "control-character": row(2, chosen="a\x07b"),
    "duplicate-pair": GOOD,
    "large-array": b"]",
}


@pytest.fixture(scope="module")
def without_latin() -> ChatFormat:
    """Has a template that does everything wrong at some word."""
    tokenizer = load_tokenizer(ORACLE)
    refuse = "{% if 'Latin' in messages[0].content %}{{ raise_exception('no Latin') }}{% endif %}"
    ponder = "{% if add_generation_prompt and 'Ponder' in messages[0].content %}<think>{% endif %}"
    opens = "{% if add_generation_prompt"
    forget = f"{opens} and 'Forget' not in messages[0].content"
    changed = "m['content'] | replace('Latin', 'Greek')"
    template = tokenizer.chat_template.replace("m['content']", changed)
    tokenizer.chat_template = refuse + template.replace(opens, forget) + ponder
    return chat_format(tokenizer)


@pytest.mark.parametrize("code", EARNS)
def test_each_code_has_a_row_that_earns_it(
    tmp_path: Path, without_latin: ChatFormat, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(json_text, "MAX_ROW", 560)
    monkeypatch.setattr(json_text, "LARGE_ARRAY", 1)
    second = EARNS[code]
    text = json.dumps(second) if isinstance(second, dict) else second
    line = text if isinstance(text, bytes) else text.encode()
    first = GOOD[:-1] + ', "id": "1"}' if code == "duplicate-id" else GOOD
    file = tmp_path / "pairs.jsonl"
    before = {"bom": b"\xef\xbb\xbf", "large-array": b"["}.get(code, b"")
    file.write_bytes(before + first.encode() + b"\n" + line)
    found, _, problems = run(file, without_latin, max_length=64)
    assert problems.counts[code] == 1
    assert bool(problems.num_errors) == (LEVELS[code] == ERROR)
    assert found.read == found.kept + found.dropped.total()
    if LEVELS[code] != WARNING:
        assert found.dropped[code] == (2 if code == "contradiction" else 1)


def test_no_code_is_without_such_a_row() -> None:
    assert EARNS.keys() == set(CODES) - IMPORTED - IN_A_RUN


def test_answers_that_differ_only_beyond_the_length_are_equal_and_say_what_to_do(
    tmp_path: Path, chat: ChatFormat
) -> None:
    file = write(tmp_path, [EARNS["equal"]])
    _, _, problems = run(file, chat, max_length=64)
    (problem,) = problems.shown()
    assert problem.reason == "chosen equals rejected once cut to 64 tokens"
    assert problem.hint == "raise --max-length"
    assert not run(file, chat, max_length=256)[2].counts


@pytest.mark.parametrize("characters", [32, 1])
def test_a_text_far_longer_than_the_length_has_the_ids_that_the_whole_text_has(
    chat: ChatFormat, monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    monkeypatch.setattr(chat_module, "_CHARACTERS", characters)
    long, longer = "A quiet lantern. " * 400, "An otter, " * 3000
    pairs = [pair(1, chosen=long), pair(2, chosen=longer, rejected=long), pair(3)]
    fitted = PairEncoder(chat, 24)(pairs)
    for one, encoded in zip(fitted, chat.encode_pairs(pairs), strict=True):
        assert not isinstance(encoded, DataError)
        (prompt, chosen, rejected), _ = encoded
        room = 24 - len(prompt)
        assert one.example == PreferenceExample(prompt, chosen[:room], rejected[:room])
    assert fitted[0].finding is not None
    assert ("more than" in fitted[0].finding.reason) == (characters == 32)
    assert fitted[2].finding is None


def test_long_texts_are_told_by_their_begin(chat: ChatFormat) -> None:
    long = "A quiet lantern. " * 400
    too_long, equal = PairEncoder(chat, 24)(
        [pair(1, prompt=long), pair(2, chosen=long + "a", rejected=long + "b")]
    )
    assert [each.finding and each.finding.code for each in (too_long, equal)] == [
        "too-long",
        "equal",
    ]
    assert equal.finding is not None
    assert "once cut to 24 tokens" in equal.finding.reason


def test_batches_have_few_pairs_or_little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "BATCH_TEXT", 100)
    sizes = [10, 10, 10, 10, 90, 10, 200, 10]
    pairs = [pair(n, prompt="", chosen="c" * size, rejected="") for n, size in enumerate(sizes)]
    assert [len(batch) for batch in encoding.in_batches(pairs)] == [3, 3, 1, 1]
    assert list(encoding.in_batches([])) == []


def pair(number: int, **changes: str) -> Preference:
    texts = row(number, **changes)
    prompt, chosen, rejected = (
        (Message(role, texts[key]),)
        for key, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    )
    return Preference(prompt, chosen, rejected, "", str(number))
