"""The audit stops what would teach length, and lets the embedded pairs through."""

import pytest

from mlx_dpo.convert.sources import load_tokenizer
from mlx_dpo.errors import DataError
from mlx_dpo.insight.audit import bias
from mlx_dpo.insight.audit.checks import (
    Check,
    audit,
    check_leaks,
    check_template,
    check_truncation,
)
from mlx_dpo.insight.audit.copies import shingle_sets
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.split import held_out
from mlx_dpo.records import Preference
from tests.insight.conftest import pair
from tests.runs.conftest import ORACLE

EMBEDDED = ORACLE.parents[3] / "data" / "dpo" / "preferences.json"
TINY = ORACLE.parents[3] / "checkpoints" / "tiny-sft"


@pytest.fixture(scope="module")
def embedded() -> list[Preference]:
    return read_preferences(EMBEDDED)


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def shingles(rows: list[Preference]) -> list[bias.Lengths]:
    return shingle_sets([bias.pair_texts(row) for row in rows])


def test_the_embedded_pairs_pass_in_words_and_in_tokens(embedded: list[Preference]) -> None:
    chat = chat_format(load_tokenizer(TINY))
    for measured in (bias.in_words(embedded), bias.in_tokens(embedded, chat)):
        checks = by_name(audit(embedded, measured, max_length=128))
        assert [name for name, check in checks.items() if check.verdict == "stop"] == []
        assert checks["length bias"].verdict == "ok"
        assert checks["truncation"].verdict == (
            "ok" if measured.unit == "tokens" else "not checked"
        )


def test_no_row_at_all_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="no pair is left to look at"):
        audit([], bias.in_words([]), max_length=64)
    with pytest.raises(DataError, match=r"no pair is left to look at \(there is none"):
        bias.in_tokens([], chat_format(load_tokenizer(TINY)), refused=[])


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_answers_lengthened_on_purpose_are_stopped(embedded: list[Preference], side: str) -> None:
    more = " I hope that this answer is of help to you."
    longer = [
        pair(
            row.question,
            row.chosen[0].content + more * (side == "chosen"),
            row.rejected[0].content + more * (side == "rejected"),
            row.kind,
        )
        for row in embedded
    ]
    check = by_name(audit(longer, bias.in_words(longer), max_length=128))["length bias"]
    assert check.verdict == "stop"
    assert check.findings
    assert check.figures["auc"] == pytest.approx(1.0 if side == "chosen" else 0.0, abs=0.02)


def test_a_bias_within_a_kind_shows_though_the_whole_is_balanced() -> None:
    long, short = "a b c d e f", "a b"
    rows = [pair(f"q{n}", long, short, "wordy", str(n)) for n in range(40)]
    rows += [pair(f"r{n}", short, long, "terse", str(n)) for n in range(40)]
    checks = by_name(audit(rows, bias.in_words(rows), max_length=64))
    assert checks["length bias"].verdict == "ok"
    assert checks["length by kind"].verdict == "look"
    assert "wordy 1.00, terse 0.00" in checks["length by kind"].reason


def test_words_that_balance_hide_no_characters_that_do_not() -> None:
    rows = [pair(f"q{n}", "extraordinarily yes", "no no", "", str(n)) for n in range(60)]
    check = by_name(audit(rows, bias.in_words(rows), max_length=64))["length bias"]
    assert check.figures["auc"] == 0.5
    assert check.verdict == "stop"


def test_truncation_counts_what_training_cuts_and_drops(embedded: list[Preference]) -> None:
    chat = chat_format(load_tokenizer(TINY))
    measured = bias.in_tokens(embedded, chat)
    for max_length in (8, 14, 20, 28, 64):
        check = check_truncation(measured, max_length)
        encoded = encode_preferences(embedded, chat, max_length=max_length)
        full = measured.lengths[0] + measured.lengths[1:].max(axis=0)
        no_room = int((measured.lengths[0] >= max_length).sum())
        equal = sum(encoded.dropped.values()) - no_room  # cut to the same: dropped as well
        assert check.figures["dropped"] == no_room
        assert check.figures["cut"] == encoded.num_cut + equal
        assert check.figures["longest"] == full.max()
    assert check_truncation(measured, 64).verdict == "ok"
    assert check_truncation(measured, 14).verdict == "stop"


@pytest.mark.parametrize("text", ["<|end|>", "<|assistant|>"])
def test_words_that_are_a_token_of_the_model_stop_as_they_do_in_training(text: str) -> None:
    chat = chat_format(load_tokenizer(TINY))
    rows = [pair("a", "b", "c"), pair("a", f"One.{text} Two.", "c"), pair(text, "b", "c")]
    check = check_template(bias.in_tokens(rows, chat))
    assert check.verdict == "stop"
    assert [finding.rows for finding in check.findings] == [(2,), (3,)]
    assert check.findings[0].note == f"chosen holds {text!r}, a token of this model"
    assert check_template(bias.in_tokens(rows[:1], chat)).verdict == "ok"


def test_leaks_of_a_file_are_prompts_in_both_and_near_copies() -> None:
    long = "the quick brown fox jumps over the lazy dog again and again until the evening comes"
    train = [pair("Hello there?", "a", "b"), pair(f"Tell me {long}", long, "no")]
    held = [
        pair("hello  there", "c", "d"),
        pair(f"Tell me {long}", f"{long} now", "no"),
        pair(f"So tell me {long}", long, "no"),
        pair("New?", "a", "b"),
    ]
    check = check_leaks(train, held, shingles([*train, *held]))
    assert check.figures == {"held_out": 4, "same_prompt": 2, "near": 1}
    assert check.verdict == "stop"
    assert check.findings[0].rows == (1,)
    assert check.findings[0].note == "has the prompt of held-out row 1"


def test_without_a_file_leaks_are_looked_for_in_the_split_of_training() -> None:
    """`held_out` keeps equal prompts together; those that differ in case it can't know."""
    rows = [pair(f"Question {n}?", f"a{n}", f"b{n}", "", str(n)) for n in range(20)]
    out = held_out(rows, 0.2)
    assert check_leaks(rows, None, shingles(rows)).verdict == "ok"
    leaked, free = out.index(True), out.index(False)
    rows[free] = pair(rows[leaked].question.upper(), "x", "y")
    assert held_out(rows, 0.2) == out
    check = check_leaks(rows, None, shingles(rows))
    assert (check.verdict, check.figures["same_prompt"]) == ("stop", 1)
    assert check.findings[0].rows == (free + 1,)
