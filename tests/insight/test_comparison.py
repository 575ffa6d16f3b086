"""Answers are counted by hand; whoever judges blind judges the right model."""

import json
import random
from pathlib import Path

import pytest

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.insight.audit.copies import normalised
from mlx_dpo.insight.comparison import (
    Compared,
    ComparisonPrompt,
    Tally,
    compare,
    habits,
    judge_blind,
    read_questions,
)
from mlx_dpo.insight.scoring import Named
from mlx_dpo.models.generate import Completion
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.split import held_out
from tests.runs.conftest import ORACLE

DATA = ORACLE.parents[3] / "data" / "dpo"


def said(text: str, closed: bool = True) -> Completion:
    return Completion(text, closed, [0] * (len(text.split()) + closed))


def compared(number: int, a: str, b: str) -> Compared:
    return Compared(ComparisonPrompt("x", f"q{number}"), (said(a), said(b)), (said(a), said(b)))


def test_the_default_prompts_are_seen_and_unseen_as_they_say() -> None:
    questions = read_questions(None)
    by_kind = {
        kind: [q.prompt for q in questions if q.kind == kind]
        for kind in ("seen", "unseen", "off-topic")
    }
    assert [len(prompts) for prompts in by_kind.values()] == [6, 6, 6]
    rows = read_preferences(DATA / "preferences.json")
    out = held_out(rows, 0.2)
    trained = {row.question for row, is_out in zip(rows, out, strict=True) if not is_out}
    assert set(by_kind["seen"]) <= trained
    known = {normalised(row.question) for row in rows}
    known |= {normalised(r["user"]) for r in json.loads((DATA / "development.json").read_text())}
    assert not {normalised(p) for p in by_kind["unseen"] + by_kind["off-topic"]} & known


def test_habits_count_tokens_repeats_and_different_answers() -> None:
    loop = "go go go go go"  # three triples, of which two repeat
    found = habits([compared(1, "a b c d", loop), compared(2, "a b c d", "x y")], side=1)
    assert found.num_answers == 4
    assert found.repetition == pytest.approx(4 / 6)
    assert found.mean_length == pytest.approx((6 + 3) / 2)
    assert (found.num_closed, found.num_different) == (4, 2)
    assert habits([compared(1, "a b c d", loop), compared(2, "a b c d", "x")], 0).num_different == 1


@pytest.mark.parametrize("seed", range(5))
def test_a_judge_who_always_likes_b_makes_b_win_on_whichever_side(seed: int) -> None:
    rows = [compared(n, f"bad {n}", f"good {n}") for n in range(12)] + [compared(99, "x", "x")]
    sides = []

    def ask(question: ComparisonPrompt, first: str, second: str) -> str:
        sides.append("1" if first.startswith("good") else "2")
        return sides[-1]

    tally = judge_blind(rows, ask, random.Random(seed))
    assert (tally.a_wins, tally.b_wins, tally.same) == (0, 12, 1)
    assert set(sides) == {"1", "2"}
    assert tally.b_share == 1.0


def test_ties_count_half_skips_not_at_all_and_q_ends_it() -> None:
    rows = [compared(n, f"bad {n}", f"good {n}") for n in range(6)]
    keys = iter("ttstq1")
    tally = judge_blind(rows, lambda question, first, second: next(keys), random.Random(0))
    assert (tally.ties, tally.skipped, tally.judged) == (3, 1, 3)
    assert tally.b_share == 0.5
    low, high = tally.interval
    assert low < 0.5 < high


def test_a_judge_of_length_alone_wins_half_once_length_is_controlled() -> None:
    """B is longer in six prompts, shorter in two, and matched in one."""
    long, short = "a b c d e f", "a b c"
    rows = [compared(n, short, long) for n in range(6)]
    rows += [compared(n, long, short) for n in range(2)] + [compared(9, "x y z", short)]
    tally = judge_blind(
        rows,
        lambda question, first, second: (
            "t" if len(first) == len(second) else ("1" if len(first) > len(second) else "2")
        ),
        random.Random(1),
    )
    assert [(group.judged, group.b_wins) for group in tally.lengths] == [(6, 6), (1, 0.5), (2, 0)]
    assert tally.b_share == pytest.approx(6.5 / 9)
    assert tally.length_controlled is not None
    assert (tally.length_controlled.share, tally.length_controlled.num_pairs) == (0.5, 8)
    assert Tally().length_controlled is None


def test_both_models_answer_from_one_seed() -> None:
    questions = [ComparisonPrompt("", "Hello"), ComparisonPrompt("", "Tell me more")]
    counts: list[int] = []
    found = compare(
        (Named(str(ORACLE)), Named(str(ORACLE))),
        questions,
        max_tokens=8,
        temperature=1.0,
        seed=4,
        after_questions=counts.append,
    )
    assert [one.question for one in found] == questions
    assert all(one.sampled[0] == one.sampled[1] for one in found)
    assert all(one.greedy[0] == one.greedy[1] for one in found)
    assert any(one.greedy[0] != one.sampled[0] for one in found)
    assert sum(counts) == 4


def test_a_prompt_file_is_lines_or_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('Plain?\n\n{"kind": "k", "prompt": "From JSON?"}\n{"prompt": "No kind?"}\n')
    assert read_questions(file) == [
        ComparisonPrompt("", "Plain?"),
        ComparisonPrompt("k", "From JSON?"),
        ComparisonPrompt("", "No kind?"),
    ]


def test_a_json_array_is_not_taken_for_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text('[{"prompt": "Who?"}]')
    with pytest.raises(DataError, match=r"prompts\.json:1: a JSON array"):
        read_questions(file)
    (tmp_path / "prompts.txt").write_text("[brackets] are words")
    assert [q.prompt for q in read_questions(tmp_path / "prompts.txt")] == ["[brackets] are words"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompts in it"),
        ('ok\n{"prompt": ', "prompts.txt:2: not JSON"),
        ('{"prompt": 3}', "prompts.txt:1: 'prompt' must be text, found a number"),
        ('{"kind": "x"}', "prompts.txt:1: 'prompt' must be text, found null"),
        ('{"prompt": "x", "kind": 1}', "'kind' must be text, found a number"),
    ],
)
def test_a_bad_prompt_file_is_refused_with_its_line(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_questions(file)


def test_a_prompt_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.txt: not readable: No such file"):
        read_questions(tmp_path / "absent.txt")
