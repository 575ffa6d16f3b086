"""The file that sampling writes, and that judging and labelling read."""

from pathlib import Path

import pytest

from mlx_dpo.errors import DataError
from mlx_dpo.records import Message
from mlx_dpo.workshop.candidates import (
    Candidate,
    Candidates,
    candidates_line,
    load_candidates,
    prompt_id,
)

ROWS = [
    Candidates(
        id="1",
        prompt=(Message("user", "Wer da?\u2028\x85 \U0001f40b"),),
        kind="tone",
        answers=(
            Candidate("Ich.", True, "a/b", "5b1f", 3, 0.0),
            Candidate(" two\nlines", False, "a/b", "5b1f", 4, 0.8),
        ),
        sampling={"batch": 8, "mlx": "0.32.4"},
    ),
    Candidates(
        id="many turns",
        prompt=(Message("system", "Be brief."), Message("user", "Hi"), Message("user", "there")),
        answers=(Candidate(""), Candidate("by a person")),
    ),
]


def test_what_is_written_is_read_again_and_written_the_same(tmp_path: Path) -> None:
    file = tmp_path / "candidates.jsonl"
    text = "".join(map(candidates_line, ROWS))
    file.write_bytes(text.encode())
    assert len(text.splitlines()) == 2, "no character of a text may look like a line break"
    assert load_candidates(file) == ROWS
    assert "".join(map(candidates_line, load_candidates(file))) == text


def test_a_file_of_prompts_is_one_of_candidates_without_answers(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "a"}\n{"user": "b", "answers": ["x", "y"]}\n{"prompt": "c", "id": 7}\n'
    )
    first, second, third = load_candidates(file)
    assert first == Candidates(prompt_id((Message("user", "a"),)), (Message("user", "a"),))
    assert second.answers == (Candidate("x"), Candidate("y"))
    assert second.prompt == (Message("user", "b"),)
    assert third.id == "7"


def test_a_row_that_is_a_pair_is_known_as_one(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    pair = '{"prompt": "a", "chosen": "b", "rejected": "c"%s}\n'
    file.write_text(pair % "" + pair % "" + pair % ', "answers": ["b", "c"]')
    assert [row.is_pair for row in load_candidates(file)] == [True, True, False]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"prompt": x}', "bad-json"),
        ("[]", "not-object"),
        ("{}", "missing-key"),
        ('{"prompt": 3}', "wrong-type"),
        ('{"prompt": "a", "answers": "x"}', "wrong-type"),
        ('{"prompt": "a", "answers": [{"model": "m"}]}', "wrong-type"),
        ('{"prompt": "a", "answers": [{"text": "x", "seed": "1"}]}', "wrong-type"),
        ('{"prompt": "a", "answers": [{"text": "x", "finished": 1}]}', "wrong-type"),
        ('{"prompt": "a", "answers": [{"text": "\\ud800"}]}', "lone-surrogate"),
        ('{"prompt": "a", "sampling": 1}', "wrong-type"),
        ('{"prompt": "a", "system": "Be brief."}', "wrong-type"),
        ('{"prompt": "a", "history": [["b", "c"]]}', "wrong-type"),
        ('{"prompt": "a", "images": ["b.png"]}', "wrong-type"),
        ('{"prompt": [{"role": "assistant", "content": "a"}]}', "wrong-type"),
        ('{"prompt": "good"}', "duplicate-id"),
    ],
)
def test_a_bad_row_has_a_code_and_a_place_and_the_others_are_checked_too(
    tmp_path: Path, line: str, code: str
) -> None:
    file = tmp_path / "candidates.jsonl"
    file.write_text('{"prompt": "good"}\n' + line + '\n{"prompt": "fine"}\n')
    with pytest.raises(DataError, match=rf"candidates\.jsonl:2:\d+: {code}: ") as caught:
        load_candidates(file)
    assert "the first of" not in str(caught.value)
    file.write_text(file.read_text() + "[]\n" + '{"prompt": "fine too"}\n')
    with pytest.raises(DataError, match=rf":2:\d+: {code}: .* \(the first of 2 errors in 5 rows"):
        load_candidates(file)
