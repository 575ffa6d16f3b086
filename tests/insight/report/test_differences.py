"""Runs are named by what differs among them, and answers are marked word by word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.insight.report.differences import run_names, word_changes
from mlx_dpo.insight.report.record import RunRecord, read_run


def marked(before: str, after: str) -> tuple[str, str]:
    """Both answers with what differs in brackets."""
    first, second = (
        "".join(f"[{piece.text}]" if piece.is_changed else piece.text for piece in pieces)
        for pieces in word_changes(before, after)
    )
    return first, second


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("It is 15.", "It is 11.", ("It is [15.]", "It is [11.]")),
        (
            "You ate a muffin today.",
            "You ate today.",
            ("You ate [a muffin] today.", "You ate today."),
        ),
        ("Yes.", "Yes. And more", ("Yes.", "Yes. [And more]")),
        ("a  b\nc", "a b c", ("a  b\nc", "a b c")),  # white space alone is no difference
        ("No word", "in common", ("No word", "in common")),
        ("", "new", ("", "new")),
        ("a " * 5000, "b", ("a " * 5000, "b")),
    ],
)
def test_words_that_the_other_answer_lacks_are_marked(
    before: str, after: str, shown: tuple[str, str]
) -> None:
    assert marked(before, after) == shown


def test_a_word_that_comes_very_often_is_compared_like_any_other() -> None:
    often = "the " * 300
    assert marked(f"{often}cat", f"{often}dog") == (f"{often}[cat]", f"{often}[dog]")


def runs(run: Path, *changes: dict[str, Any]) -> list[RunRecord]:
    record = read_run(run)
    return [
        replace(record, folder=Path(f"runs/r-{n}"), config=replace(record.config, **change))
        for n, change in enumerate(changes, 1)
    ]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{}], ["r-1"]),
        ([{}, {"out": "x", "log_every": 7}], ["r-1", "r-2"]),  # alike in all that matters
        ([{"beta": 0.1}, {"beta": 0.25}], ["beta 0.1", "beta 0.25"]),
        ([{"plain": True}, {}], ["plain", "no plain"]),
        ([{"model": "a/llama"}, {"model": "b/qwen"}], ["model llama", "model qwen"]),
        ([{"model": "a/llama"}, {"model": "b/llama"}], ["model a/llama", "model b/llama"]),
        (
            [{"beta": 0.1, "seed": 1}, {"beta": 0.1, "seed": 1}, {"beta": 0.1, "seed": 2}],
            ["seed 1 (r-1)", "seed 1 (r-2)", "seed 2"],
        ),
        (
            [{"beta": 0.1, "epochs": 1, "seed": 1, "batch_size": 2, "learning_rate": 1e-4}, {}],
            [
                "beta 0.1, learning rate 0.0001, batch size 2",
                "beta 0.2, no learning rate, batch size 4",
            ],
        ),
    ],
)
def test_runs_are_named_by_what_differs(
    run: Path, changes: list[dict[str, Any]], names: list[str]
) -> None:
    assert run_names(runs(run, *changes)) == names
