"""Scores are what a person would count by hand, from log-probs computed apart from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.insight.evaluation import assess, held_out_of_run, spread_prompts
from mlx_dpo.insight.scoring import open_model
from mlx_dpo.preferences.scores import (
    group_by_length,
    length_controlled,
    score_groups,
    untaught_kinds,
    wilson_interval,
)
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.logprobs import pair_logprobs
from tests.insight.conftest import pair
from tests.runs.conftest import ORACLE, ROWS

REFERENCE = np.array([[-10, -20, -30, -40], [-11, -19, -30, -45]], dtype=np.float32)
POLICY = np.array([[-9, -18, -35, -40], [-13, -20, -31, -39]], dtype=np.float32)
PAIRS = [
    pair(r["user"], r["chosen"], r["rejected"], r["kind"], str(n)) for n, r in enumerate(ROWS, 1)
]


def test_groups_count_what_can_be_counted_by_hand() -> None:
    """Rewards at beta 0.5: chosen .5 1 -2.5 0, rejected -1 -.5 -.5 3; margins 1.5 1.5 -2 -3."""
    everything, tone, form = score_groups(
        POLICY, REFERENCE, ["tone", "tone", "format", "format"], beta=0.5
    )
    assert (everything.name, everything.num_pairs) == ("all", 4)
    assert everything.reward_accuracy == 0.5
    assert everything.margin == pytest.approx(-0.5)
    assert everything.chosen_reward == pytest.approx(-0.25)
    assert everything.rejected_reward == pytest.approx(0.25)
    # log-probs: before 1 0 0 1 (a tie is not a win), after 1 1 0 0
    assert (everything.logprob_accuracy_before, everything.logprob_accuracy_after) == (0.5, 0.5)
    assert (tone.name, tone.verdict, tone.reward_accuracy) == ("tone", "better", 1.0)
    assert (form.name, form.verdict, form.reward_accuracy) == ("format", "worse", 0.0)
    assert tone.loss == pytest.approx(np.log1p(np.exp(-1.5)))


def test_an_untrained_policy_has_loss_log_2_and_no_reward_accuracy() -> None:
    (everything,) = score_groups(REFERENCE, REFERENCE, ["x"] * 4, beta=0.1)
    assert everything.loss == pytest.approx(np.log(2))
    assert everything.reward_accuracy == everything.margin == 0.0


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_agrees_with_published_values(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def test_accuracy_margin_and_loss_are_those_of_the_definition(policy_folder: Path) -> None:
    policy, reference = open_model(str(policy_folder)), open_model(str(ORACLE))
    found = assess(
        policy, reference, PAIRS, beta=0.3, max_length=96, num_prompts=2, max_tokens=4, seed=0
    )
    examples = list(found.pairs.examples)
    ours, theirs = (
        np.concatenate(
            [
                np.array(pair_logprobs(loaded.model, [e], max_seq_len=96, pad_id=0))
                for e in examples
            ],
            axis=1,
        ).astype(np.float64)
        for loaded in (policy, reference)
    )
    margin = 0.3 * ((ours[0] - theirs[0]) - (ours[1] - theirs[1]))
    everything = found.groups[0]
    assert everything.margin == pytest.approx(margin.mean(), abs=1e-3)
    assert everything.reward_accuracy == (margin > 0).mean()
    assert everything.loss == pytest.approx(np.log1p(np.exp(-margin)).mean(), abs=1e-3)
    assert everything.logprob_accuracy_before == (theirs[0] > theirs[1]).mean()
    assert everything.logprob_accuracy_after == (ours[0] > ours[1]).mean()
    assert 0 < everything.reward_accuracy < 1
    assert sum(group.num_pairs for group in found.lengths) == len(PAIRS)
    assert sum(group.reward_wins for group in found.lengths) == (margin > 0).sum()
    assert sum(b.num_pairs for b in found.calibration.bins) == len(PAIRS)
    assert found.drift is not None
    assert found.drift.num_prompts == 2


def test_the_untrained_policy_scores_log_2_and_no_drift() -> None:
    model = open_model(str(ORACLE))
    found = assess(
        model, model, PAIRS, beta=0.1, max_length=96, num_prompts=0, max_tokens=4, seed=0
    )
    assert found.groups[0].loss == pytest.approx(np.log(2), abs=1e-7)
    assert found.groups[0].reward_accuracy == 0
    assert found.calibration.ece == 0
    assert found.drift is None


def test_lengths_are_matched_within_a_tenth_or_one_token() -> None:
    lengths = [(10, 10), (10, 11), (12, 10), (10, 12), (3, 4), (3, 5), (100, 91), (100, 89)]
    examples = [PreferenceExample([1], [2] * c, [3] * r) for c, r in lengths]
    reference = np.zeros((2, 8), np.float32)
    policy = np.array([[1, 0, 1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1, 0, 1]], np.float32)
    longer, matched, shorter = group_by_length(policy, reference, examples)
    assert (longer.num_pairs, longer.reward_wins) == (2, 1)
    assert (matched.num_pairs, matched.reward_wins, matched.logprob_wins_before) == (4, 3, 0)
    assert (shorter.num_pairs, shorter.logprob_wins_after) == (2, 0)


def test_a_length_controlled_share_is_the_mean_of_both_groups_with_their_joint_interval() -> None:
    found = length_controlled((8, 10), (10, 10))
    assert found is not None
    assert found.num_pairs == 20
    assert found.share == pytest.approx(0.9)
    down, up = np.hypot(0.8 - 0.4902, 1 - 0.7225) / 2, (0.9433 - 0.8) / 2  # of Wilson's intervals
    assert found.interval == pytest.approx((0.9 - down, 0.9 + up), abs=1e-4)
    assert length_controlled((8, 10), (0, 0)) is None


def test_no_pair_to_score_is_an_error_that_says_why() -> None:
    model = open_model(str(ORACLE))
    with pytest.raises(DataError, match=r"no pair is left to score \(14 "):
        assess(model, model, PAIRS, beta=0.1, max_length=4, num_prompts=0, max_tokens=4, seed=0)


def test_models_with_different_tokenizers_are_refused() -> None:
    tiny = open_model(str(ORACLE.parents[3] / "checkpoints" / "tiny-sft"))
    with pytest.raises(UsageError, match="has another tokenizer than the policy"):
        assess(
            open_model(str(ORACLE)),
            tiny,
            PAIRS,
            beta=0.1,
            max_length=96,
            num_prompts=0,
            max_tokens=4,
            seed=0,
        )


def test_prompts_are_spread_and_none_comes_twice() -> None:
    rows = [pair(f"q{n // 2}", "a", f"b{n}", "", str(n)) for n in range(40)]
    picked = [row.question for row in spread_prompts(rows, 5)]
    assert picked == ["q2", "q6", "q10", "q14", "q18"]
    assert len(spread_prompts(rows, 100)) == 20
    assert spread_prompts(rows, 0) == []


def test_pairs_the_model_was_trained_on_are_left_out_by_its_own_record() -> None:
    record: dict[str, Any] = {
        "data": {"file": "x/pairs.json", "split": {"train": ["1", "2", "4"], "held_out": ["3"]}}
    }
    rows = PAIRS[:4]
    found = held_out_of_run(rows, "y/pairs.json", record)
    assert found is not None
    assert [row.id for row in found] == ["3"]
    assert held_out_of_run(rows, "other.json", record) is None
    assert held_out_of_run(rows[:2], "pairs.json", record) is None
    for broken in ({}, {"data": None}, {"data": {"file": "pairs.json", "split": [1]}}):
        assert held_out_of_run(rows, "pairs.json", broken) is None


def test_kinds_without_a_training_pair_are_set_apart_where_every_row_says_its_kind() -> None:
    assert untaught_kinds(["tone", "form"], ["sums", "tone", "sums", "facts"]) == ("sums", "facts")
    assert untaught_kinds(["tone"], ["tone", ""]) == ()
    assert untaught_kinds(["tone", ""], ["sums", "tone"]) == ()
    assert untaught_kinds(["tone"], ["sums"]) == ()  # nothing would be left to judge by
    assert untaught_kinds(["tone"], []) == ()
