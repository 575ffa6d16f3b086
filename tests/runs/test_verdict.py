"""Each outcome of a run has its name, in one sentence with its evidence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.records import Message, Pairs, Preference, PreferenceExample
from mlx_dpo.runs import verdict
from mlx_dpo.runs.collapse import FLOOR_WINDOW
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.verdict import BeforeAfter, Evidence, Verdict, judge, marked
from tests.runs.conftest import finished

SETTINGS = RunConfig(model="m", data="d", learning_rate=1e-5, beta=0.1, epochs=1)
LOOP = "the fruit of the tree, " * 6


def evidence(
    wins: int,
    total: int,
    *,
    kinds: list[str] | None = None,
    lengths: tuple[int, int] = (4, 4),
    losses: tuple[float, ...] = (),
    answers: tuple[tuple[str, str], ...] = (("Fine.", "Thank you, fine."),),
    steps: list[dict[str, Any]] | None = None,
    moved: float = 5.0,
) -> Evidence:
    """A run that got the first `wins` of `total` held-out pairs right."""
    reference = np.full((2, total), -20, np.float32)
    change = np.where(np.arange(total) < wins, moved, -moved)
    policy = (reference + np.stack([change, -change])).astype(np.float32)
    examples = [PreferenceExample([1], [2] * lengths[0], [3] * lengths[1])] * total
    pairs = Pairs(examples, [str(n) for n in range(total)], kinds or ["tone"] * total)
    rows = list(steps or [])
    rows += [{"step": 10 * n + 9, "held_out": {"loss": loss}} for n, loss in enumerate(losses)]
    shown = [
        BeforeAfter("Q?", "tone", sft, dpo, verdict.SAME if sft == dpo else verdict.CHANGED)
        for sft, dpo in answers
    ]
    return Evidence(policy, reference, pairs, shown, rows, SETTINGS)


def test_pairs_surely_above_chance_are_better_with_their_interval() -> None:
    found = judge(evidence(41, 50, losses=(0.65, 0.6)))
    assert found.outcome == verdict.BETTER
    assert found.sentence == (
        "Better on held-out pairs: 41 of 50 right (95 % interval 0.69 to 0.90), mean margin +0.640."
    )


@pytest.mark.parametrize(("wins", "total"), [(1, 1), (2, 2), (30, 58), (4, 5)])
def test_a_share_that_may_be_chance_is_called_so(wins: int, total: int) -> None:
    found = judge(evidence(wins, total))
    assert found.outcome == verdict.TOO_FEW
    assert f"{wins} of {total}" in found.sentence


def test_pairs_surely_below_chance_are_worse() -> None:
    assert judge(evidence(5, 50)).outcome == verdict.WORSE


def test_equal_answers_and_log_probs_that_stand_still_are_no_change() -> None:
    """Ten pairs of one's own, one held out: an accuracy of 1.00 that means nothing."""
    same = (("Hello.", "Hello."), ("I am.", "I am."))
    steps = [
        {"step": n, "loss": 0.69, "chosen_reward": 0.0, "rejected_reward": 0.0} for n in (0, 1)
    ]
    found = judge(evidence(1, 1, answers=same, steps=steps, moved=0.02))
    assert found == Verdict(
        verdict.UNCHANGED,
        "Nothing changed: 2 of 2 answers are the same as before, and log-probs of held-out "
        "answers moved by 0.02 nats.",
        "The run made 2 steps; try --learning-rate 3e-05, and --epochs 50.",
    )
    assert judge(evidence(50, 50, answers=same)).outcome == verdict.BETTER  # it did move
    moved = judge(evidence(2, 3, answers=same))  # and so few pairs show nothing
    assert moved.outcome == verdict.UNCHANGED
    assert moved.sentence.startswith("No answer changed: 2 of 2 answers are the same as before")


def test_an_answer_that_begins_to_repeat_itself_is_a_collapse_whatever_the_pairs_say() -> None:
    for loop in (LOOP, "prprpr" * 20):  # also without a space
        assert judge(evidence(50, 50, answers=(("An apple.", loop),))).outcome == verdict.LOOPING
        pair = Preference((Message("user", "Q"),), (), (), "", "1")
        assert marked([pair], ["An apple."], [loop], {"1": 3.0})[0].mark == verdict.WORSE
    found = judge(evidence(50, 50, answers=(("An apple.", LOOP), ("Red.", "Red."))))
    assert found.outcome == verdict.LOOPING
    assert found.sentence == "Began to loop: 1 of 2 answers repeats itself."
    assert "--learning-rate (it was 1e-05)" in found.advice
    assert judge(evidence(50, 50, answers=((LOOP, LOOP + "!"),))).outcome == verdict.BETTER


def test_rewards_that_both_fall_far_are_a_collapse_and_not_comforted() -> None:
    steps = [
        {"step": n, "loss": 0.1, "chosen_reward": -50.0, "rejected_reward": -90.0}
        for n in range(FLOOR_WINDOW)
    ]
    found = judge(evidence(50, 50, steps=steps))
    assert found.outcome == verdict.COLLAPSED
    assert "chosen reward is -50.00" in found.sentence


def test_a_held_out_loss_that_turned_names_the_step_to_stop_at() -> None:
    found = judge(evidence(45, 50, losses=(0.66, 0.61, 0.7)))
    assert found.outcome == verdict.OVERFITTED
    assert "lowest at step 20 (0.610) and is 0.700 at the end" in found.sentence
    assert found.advice == "Keep that step: --keep best."
    assert judge(evidence(45, 50, losses=(0.66, 0.61, 0.62))).outcome == verdict.BETTER
    # A loss that never fell has nothing to stop at.
    assert judge(evidence(30, 58, losses=(0.694, 0.73))).outcome == verdict.TOO_FEW


def test_right_where_chosen_is_longer_and_wrong_where_it_is_shorter_is_length() -> None:
    longer, shorter = evidence(20, 20, lengths=(9, 3)), evidence(1, 15, lengths=(3, 9))
    both = replace(
        longer,
        policy=np.concatenate([longer.policy, shorter.policy], axis=1),
        reference=np.concatenate([longer.reference, shorter.reference], axis=1),
        held_out=Pairs(
            [*longer.held_out.examples, *shorter.held_out.examples],
            [str(n) for n in range(35)],
            ["tone"] * 35,
        ),
    )
    found = judge(both)
    assert found.outcome == verdict.LENGTH
    assert "right on 20 of 20" in found.sentence
    assert "on 1 of 15" in found.sentence


def test_kinds_that_gained_and_kinds_that_lost_are_both_named() -> None:
    found = judge(evidence(20, 40, kinds=["tone"] * 20 + ["sums"] * 20))
    assert found.outcome == verdict.MIXED
    assert "right on tone (20 of 20); wrong on sums (0 of 20)" in found.sentence


def test_kinds_that_no_pair_was_trained_on_are_told_apart_and_not_judged() -> None:
    run = evidence(20, 40, kinds=["tone"] * 20 + ["sums"] * 20)
    found = judge(replace(run, untaught=("sums",)))
    assert found.outcome == verdict.BETTER
    assert "20 of 20 right" in found.sentence
    assert found.sentence.endswith(
        "Not trained on sums: the chosen answer is the likelier one in 0 of 20 pairs before, 0 "
        "after."
    )


def test_without_held_out_pairs_nothing_is_claimed() -> None:
    found = judge(evidence(0, 0))
    assert found.outcome == verdict.UNMEASURED
    assert "1 of 1 answers changed" in found.sentence


def test_what_improved_is_shown_first_and_what_stayed_last() -> None:
    sides = (Message("assistant", "Yes please."),), (Message("assistant", "Go away."),)
    pairs = [Preference((Message("user", f"Q{n}"),), *sides, "tone", str(n)) for n in range(6)]
    after = ["So.", "Go away.", "Yes please.", "Yes please.", "Yes please.", "Go away."]
    margin_of = {"0": 1.0, "1": -1.0, "2": 1.0, "3": -1.0, "5": 1.0}
    found = marked(pairs, ["So."] * 6, after, margin_of)
    assert [(answer.prompt, answer.mark) for answer in found] == [
        ("Q2", "better"),
        ("Q3", "changed"),  # its margin and its words disagree
        ("Q4", "changed"),  # its pair was trained on
        ("Q5", "changed"),
        ("Q1", "worse"),
        ("Q0", "same"),
    ]


def test_of_answers_that_became_better_the_one_nearest_to_its_chosen_answer_is_first() -> None:
    chosen, rejected = "I cannot know that.", "You ate bread."
    pairs = [
        Preference(
            (Message("user", f"Q{n}"),),
            (Message("assistant", chosen),),
            (Message("assistant", rejected),),
            "honesty",
            str(n),
        )
        for n in range(3)
    ]
    after = ["You had rice.", "I cannot tell you that.", "I eat bread."]
    found = marked(pairs, ["You ate rice."] * 3, after, {"0": 9.0, "1": 1.0, "2": 2.0})
    assert [answer.prompt for answer in found] == ["Q1", "Q2", "Q0"]


def test_a_run_keeps_its_verdict(workplace: Path) -> None:
    result = finished(run_dir="run")
    kept = json.loads(Path("run/result.json").read_text())["verdict"]
    assert kept["outcome"] == result.verdict.outcome in verdict.OUTCOMES
    assert kept["sentence"] == result.verdict.sentence
