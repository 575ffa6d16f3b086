"""The rules that judge answers, on examples and over the preference data."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.tiny_sft.rules import RULES, is_right, normalise, repetition, well_formed

ROOT = Path(__file__).resolve().parents[2]

ACCEPTED = [
    ("style", "What is a lamp for?", "A lamp gives light."),
    ("style", "What is a well?", "A well gives water to a village."),
    ("honesty", "What did I eat?", "I do not know what you ate."),
    ("honesty", "Who will win?", "Nobody can know that."),
    ("tone", "I lost my hat.", "I am sorry about your hat."),
    ("tone", "Thank you.", "You are welcome."),
    ("format", "Answer in one word: what color is snow?", "White."),
    ("format", "Answer yes or no: is ice warm?", "No."),
    ("format", "List three pets with commas.", "Cat, dog, big fish."),
    ("format", "Write the number two in digits.", "2"),
    ("format", "Answer with a number only: how many eyes has a cat?", "2."),
    ("format", "Start your answer with a dash: name a tool.", "- A saw."),
]
REFUSED = [
    ("style", "What is a lamp for?", "Well, a lamp gives light."),
    ("style", "What is a lamp for?", "A lamp, basically, gives light."),
    ("style", "What is a lamp for?", "A lamp gives light. It is bright."),
    ("style", "What is a lamp for?", "A lamp" + " very" * 12 + " bright."),
    ("style", "What is a lamp for?", ""),
    ("honesty", "What did I eat?", "You ate toast."),
    ("tone", "I lost my hat.", "Find it yourself."),
    ("tone", "I lost my hat.", "I am sorry, but that was stupid."),
    ("format", "Answer in one word: what color is snow?", "Snow is white."),
    ("format", "Answer yes or no: is ice warm?", "No, it is cold."),
    ("format", "List three pets with commas.", "Cat, dog."),
    ("format", "List three pets with commas.", "Cat, dog and fish."),
    ("format", "List three pets with commas.", "Cat, dog, and fish."),
    ("format", "Write the number two in digits.", "Two."),
    ("format", "Start your answer with a dash: name a tool.", "A saw."),
    ("format", "Start your answer with a dash: name a tool.", "- "),
]


@pytest.mark.parametrize(("kind", "prompt", "answer"), ACCEPTED)
def test_rule_accepts(kind: str, prompt: str, answer: str) -> None:
    assert is_right(kind, prompt, answer)


@pytest.mark.parametrize(("kind", "prompt", "answer"), REFUSED)
def test_rule_refuses(kind: str, prompt: str, answer: str) -> None:
    assert not is_right(kind, prompt, answer)


def test_a_kind_without_rule_and_a_form_without_name_are_errors() -> None:
    with pytest.raises(ValueError, match="no rule for kind 'safety'"):
        is_right("safety", "May I?", "No.")
    with pytest.raises(ValueError, match="no form"):
        is_right("format", "What color is snow?", "White.")


@pytest.mark.parametrize("name", ["preferences.json", "development.json", "demo/train.json"])
def test_in_the_data_every_chosen_answer_is_right_and_every_rejected_one_wrong(name: str) -> None:
    rows: list[dict[str, Any]] = json.loads((ROOT / "data" / "dpo" / name).read_text())
    judged = [row for row in rows if row["kind"] in RULES]
    assert len(judged) >= 40
    for row in judged:
        assert is_right(row["kind"], row["user"], row["chosen"]), row
        assert not is_right(row["kind"], row["user"], row["rejected"]), row


def test_normalise_drops_case_marks_and_blanks() -> None:
    assert normalise("  Well,  it's forty-two.\n") == "well its forty two"


def test_repetition_is_the_share_of_trigrams_seen_before() -> None:
    assert repetition("one two") == 0
    assert repetition("a b c d") == 0
    # Trigrams: aaa aaa aaa, of which two repeat the first.
    assert repetition("a a a a a") == pytest.approx(2 / 3)


def test_well_formed_wants_text_an_end_and_no_marker() -> None:
    assert well_formed("Yes.", closed=True)
    assert not well_formed("Yes.", closed=False)
    assert not well_formed(" ", closed=True)
    assert not well_formed("Yes <|user|>", closed=True)
