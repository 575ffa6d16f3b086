"""Verdicts between two answers: words that name one, and numbers whose first is seen in a file."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import DataError
from mlx_dpo.preferences.reader import read_preferences
from tests.workshop.importers.test_import import invoke


def votes(names: tuple[str, str], verdicts: list[Any], column: str = "label") -> list[Any]:
    """Rows whose first answer is ``A``."""
    return [
        {"prompt": f"q{n}", **dict(zip(names, "AB", strict=True)), column: said}
        for n, said in enumerate(verdicts)
    ]


def chosen(folder: Path, rows: list[Any], *options: str) -> tuple[str, str, str]:
    """The better answers, what the command shows, and the error it ends with."""
    source, made = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = invoke("import", source, "--out", made, "--overwrite", *options)
    assert result.exception is None or isinstance(result.exception, DataError)
    pairs = read_preferences(made) if result.exception is None else []
    better = "".join(pair.chosen[0].content for pair in pairs)
    return better, result.output, str(result.exception or "")


R12, R01, AB = ("response_1", "response_2"), ("response_0", "response_1"), ("answer_a", "answer_b")


@pytest.mark.parametrize(
    ("names", "verdicts", "better"),
    [
        (R12, [1, 2, 1, 2], "ABAB"),
        (R12, ["1", "2"], "AB"),
        (R12, [1, 0, 1.5, 2], "AB"),
        (R12, [1, 1], "AA"),
        (R12, ["model 1", "Model_2"], "AB"),
        (R01, [0, 1], "AB"),
        (R01, [1, 1], "BB"),
        (R01, [0, 1, 0.5, 2], "AB"),
        (AB, [1, 2], "AB"),
        (AB, [2, 2], "BB"),
        (("answer1", "answer2"), ["answer1", "answer 2", "Answer_1", "B"], "ABAB"),
        (("response-1", "response-2"), ["response_1", "response 2"], "AB"),
        (("completion_a", "completion_b"), ["completion_a", "completion_b", "Model B"], "ABB"),
        (("response_A", "response_B"), ["response_A", "b", "Assistant A", "[[B]]", "Tie"], "ABAB"),
        (AB, ["a", "right", "tie (bothbad)", "First"], "ABA"),
        (R01, ["response_0", "response_1"], "AB"),
    ],
)
def test_words_and_numbers_that_are_clear_are_read(
    tmp_path: Path, names: tuple[str, str], verdicts: list[Any], better: str
) -> None:
    found, out, _ = chosen(tmp_path, votes(names, verdicts))
    assert found == better
    numbers = [said for said in verdicts if isinstance(said, (int, float))]
    assert ("was read as" in out) >= bool(numbers)


@pytest.mark.parametrize(
    ("names", "verdicts", "better", "reason"),
    [
        (R12, [0, 1, 0, 1], "ABAB", "they may count from 0; if 0 is the first answer"),
        (R12, [0, 0], "AA", ""),
        (R01, [1, 2], "AB", "they may count from 1"),
        (AB, [0, 1], "AB", "say what they count from"),
        (AB, [1, 1], "BB", ""),
        (AB, [0, 1, 2], "AB", ""),
    ],
)
def test_numbers_that_may_be_read_two_ways_are_refused_with_the_option_that_decides(
    tmp_path: Path, names: tuple[str, str], verdicts: list[Any], better: str, reason: str
) -> None:
    rows = votes(names, verdicts)
    found, _, error = chosen(tmp_path, rows)
    assert not found
    assert reason in error
    option = shlex.split(error[error.index("--columns ") :])[:2]
    assert chosen(tmp_path, rows, *option)[0] == better


@pytest.mark.parametrize("verdicts", [[-1, 1], [1, 2, 5], [0.3, 0.8], [0.5, 1.5, 1]])
def test_a_scale_is_no_number_of_an_answer(tmp_path: Path, verdicts: list[Any]) -> None:
    for names in (R12, R01, AB):
        found, _, error = chosen(tmp_path, votes(names, verdicts))
        assert not found
        assert f"'label' holds {min(verdicts):g}, " in error


@pytest.mark.parametrize(
    "ranking", [[2, 3, 1], [1, 2, 0], [7, 8, 9], [0.2, 0.5, 0.1], [1, None, 2]]
)
def test_a_ranking_that_may_be_an_order_is_left_out(tmp_path: Path, ranking: list[Any]) -> None:
    rows = [{"prompt": "q", "answers": ["A", "B", "C"], "ranking": ranking}]
    better, _, error = chosen(tmp_path, rows)
    assert (better, "(1 no-pair)" in error) == ("", True)
    best = ranking.index(min(rank for rank in ranking if rank is not None))
    assert chosen(tmp_path, rows, "--columns", "ranks=ranking")[0] == "ABC"[best]


def test_one_verdict_among_three_answers_is_no_pair(tmp_path: Path) -> None:
    rows = [row | {"response_3": "C"} for row in votes(R12, [1, 2])]
    assert "(2 no-pair)" in chosen(tmp_path, rows)[2]


def test_a_conversation_is_named_as_its_column_is(tmp_path: Path) -> None:
    both = {
        f"conversation_{letter}": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": letter.upper()},
        ]
        for letter in "ab"
    }
    for said, better in (("Model A", "A"), ("conversation_b", "B"), ("assistant-a", "A")):
        assert chosen(tmp_path, [both | {"winner": said}])[0] == better
