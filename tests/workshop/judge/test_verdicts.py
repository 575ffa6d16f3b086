"""Two orders, one verdict: what counts as a win, and what a reply may look like."""

import pytest

from mlx_dpo.records import Message
from mlx_dpo.workshop.candidates import Candidate, Candidates, Contest, contests_of
from mlx_dpo.workshop.judge.verdicts import (
    Judge,
    JudgeQuestion,
    Verdict,
    decide,
    is_same_model,
    judge_all,
    read_verdict,
    summarize,
)

PROMPT = (Message("user", "I am late."),)


class Scripted(Judge):
    """Says the next of some verdicts each time, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.asked: list[JudgeQuestion] = []

    def verdict(self, question: JudgeQuestion) -> Verdict:
        self.asked.append(question)
        return self.verdicts.pop(0)


def contest(first: str = "Come in.", second: str = "Go away.", **models: str) -> Contest:
    answers = (
        Candidate(first, model=models.get("one", "")),
        Candidate(second, model=models.get("other", "")),
    )
    return contests_of(Candidates("p-1", PROMPT, "tone", answers))[0]


def test_a_judge_that_likes_the_first_place_wins_nothing() -> None:
    judge = Scripted(Verdict.A, Verdict.A)
    decision = decide(judge, contest())
    assert decision.outcome == "flip"
    assert [question.a for question in judge.asked] == ["Come in.", "Go away."]


@pytest.mark.parametrize(
    ("said", "winner"),
    [((Verdict.A, Verdict.B), "Come in."), ((Verdict.B, Verdict.A), "Go away.")],
)
def test_the_answer_that_wins_in_both_orders_is_chosen(
    said: tuple[Verdict, Verdict], winner: str
) -> None:
    decision = decide(Scripted(*said), contest())
    assert decision.outcome == "won"
    assert decision.preference.chosen == (Message("assistant", winner),)
    assert decision.preference.rejected != decision.preference.chosen
    assert (decision.preference.kind, decision.preference.id) == ("tone", "p-1")


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ((Verdict.TIE, Verdict.A), "tie"),
        ((Verdict.A, Verdict.TIE), "tie"),
        ((Verdict.A, Verdict.ABSTAIN), "abstain"),
        ((Verdict.ABSTAIN,), "abstain"),
        ((Verdict.FAILED,), "failed"),
        ((Verdict.B, Verdict.FAILED), "failed"),
    ],
)
def test_less_than_a_win_in_both_orders_is_no_pair(said: tuple[Verdict, ...], outcome: str) -> None:
    assert decide(Scripted(*said), contest()).outcome == outcome


def test_blank_and_equal_answers_never_meet() -> None:
    texts = ["yes", " ", "yes", "no", "maybe"]
    row = Candidates("p", PROMPT, "", tuple(map(Candidate, texts)))
    met = [(c.first.text, c.second.text) for c in contests_of(row)]
    assert met == [("yes", "no"), ("yes", "maybe"), ("no", "maybe")]
    assert len({c.id for c in contests_of(row)}) == 3
    assert contests_of(Candidates("p", PROMPT, "", tuple(map(Candidate, ["yes", "yes"])))) == []


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", Verdict.A),
        (" B.\n", Verdict.B),
        ("**A**", Verdict.A),
        ("[[B]]", Verdict.B),
        ("Tie", Verdict.TIE),
        ("Verdict: tie", Verdict.TIE),
        ("The better one is kinder.\n\nFinal answer: B", Verdict.B),
        ("A\n\nIt is short.", Verdict.A),
        ("<think>A is short, B\n</think>\nA", Verdict.A),
        ("", Verdict.ABSTAIN),
        ("C", Verdict.ABSTAIN),
        ("a", Verdict.ABSTAIN),
        ("A or B", Verdict.ABSTAIN),
        ("A\nB", Verdict.ABSTAIN),
        ("A better answer would be longer.", Verdict.ABSTAIN),
        ("I can't choose A here.", Verdict.ABSTAIN),
        ("<think>A</think>", Verdict.ABSTAIN),
        ("_" * 5_000 + "A" + "_" * 5_000, Verdict.ABSTAIN),
    ],
)
def test_only_a_verdict_alone_on_its_line_counts(reply: str, verdict: Verdict) -> None:
    assert read_verdict(reply) is verdict


def test_the_counts_of_a_round_add_up() -> None:
    answer_pairs = [("aaa", "b"), ("a", "bbb"), ("a", "b"), ("aa", "b"), ("a", "b"), ("a", "b")]
    contests = [
        contest(first, second, one="org/judge-7b", other="other") for first, second in answer_pairs
    ]
    said = [
        *(Verdict.A, Verdict.B),  # won by the longer, the judge's own
        *(Verdict.A, Verdict.B),  # won by the shorter, its own
        *(Verdict.B, Verdict.B),  # a flip
        *(Verdict.TIE, Verdict.TIE),
        Verdict.ABSTAIN,
        Verdict.FAILED,
    ]
    decisions = judge_all(Scripted(*said), contests)
    summary = summarize(decisions, "JUDGE-7B")
    assert summary.outcomes == {"won": 2, "flip": 1, "tie": 1, "abstain": 1, "failed": 1}
    assert sum(summary.outcomes.values()) == len(contests)
    assert (summary.longer_winners, summary.shorter_winners) == (1, 1)
    assert (summary.own_answers, summary.own_wins, summary.own_losses) == (6, 2, 0)


def test_a_model_is_known_by_the_last_part_of_its_name() -> None:
    assert is_same_model("mlx-community/Qwen3-4B", "./models/qwen3-4b/")
    assert not is_same_model("", "")
    assert not is_same_model("org/a", "org/b")
