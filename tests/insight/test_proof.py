"""What an export keeps: margins, their interval, and the pairs and the reference they are of."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_dpo.convert.sources import Source, locate
from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.insight.proof import NotMeasurableError, margin_of, plan_trial, prove, score
from tests.insight.conftest import policy_folder
from tests.runs.conftest import ORACLE, ROWS, workplace

__all__ = ["policy_folder", "workplace"]  # fixtures, used by their names


def logprobs(*margins: float, start: float = -20.0) -> Any:
    """Float32 (2, N): the chosen answers have gained the margin, the others nothing."""
    chosen = start + np.array(margins, np.float32)
    return np.stack([chosen, np.full_like(chosen, start)])


REFERENCE = logprobs(0, 0, 0)


def test_a_margin_has_the_interval_of_students_t() -> None:
    found = margin_of(logprobs(1, 2, 3), REFERENCE, beta=0.5)
    assert found.mean == pytest.approx(1.0)
    # Spread 0.5, three pairs, two degrees of freedom: 4.303 * 0.5 / sqrt(3).
    assert (found.low, found.high) == pytest.approx((1 - 1.2422, 1 + 1.2422), abs=1e-4)
    assert not found.is_measurable


@pytest.mark.parametrize(("pairs", "t"), [(12, 2.201), (31, 2.042), (1001, 1.962)])
def test_quantiles_of_many_pairs_are_those_of_the_tables(pairs: int, t: float) -> None:
    values = np.arange(pairs, dtype=np.float64)
    found = margin_of(logprobs(*values), logprobs(*0 * values), beta=1)
    width = t * values.std(ddof=1) / np.sqrt(pairs)
    assert found.high - found.mean == pytest.approx(width, rel=2e-3)


def test_one_pair_alone_measures_nothing() -> None:
    proof = prove(logprobs(5), logprobs(5), logprobs(0), beta=0.1)
    assert proof.kept is None
    assert proof.as_record()["interval"] is None
    json.dumps(proof.as_record(), allow_nan=False)


def test_what_is_kept_is_the_ratio_of_the_mean_margins() -> None:
    before, after = logprobs(9, 10, 11), logprobs(7, 8, 9)
    proof = prove(after, before, REFERENCE, beta=0.1)
    assert proof.kept == pytest.approx(0.8)
    assert not proof.is_enough
    # Three of six responses moved, by 2 nats; training moved the same three by 10.
    assert (proof.moved, proof.moved_by_training) == pytest.approx((1.0, 5.0))
    assert proof.lines() == (
        "+0.8000: 0.80 of the margin",
        "log-probs by 1.000 nats on average; training moved them by 5.000",
    )
    assert proof.as_record()["margin_exported"] == pytest.approx(0.8)


@pytest.mark.parametrize(("exported", "kept"), [(10.5, 0.95), (13.0, 0.7), (70.0, 0.0), (-5, 0)])
def test_a_margin_that_rounding_made_larger_is_not_kept_either(
    exported: float, kept: float
) -> None:
    proof = prove(logprobs(*[exported] * 3), logprobs(9, 10, 11), REFERENCE, beta=0.1)
    assert proof.kept == pytest.approx(kept, abs=1e-6)
    assert proof.is_enough == (kept >= 0.9)


def test_what_is_not_enough_is_not_shown_as_if_it_were() -> None:
    proof = prove(logprobs(8.98, 8.98, 8.98), logprobs(9, 10, 11), REFERENCE, beta=0.1)
    assert proof.kept == pytest.approx(0.898)
    assert proof.shown == "0.89"


def test_a_margin_that_is_kept_by_chance_is_told_by_the_log_probs() -> None:
    """Rounding that moves the log-probs further than training did leaves noise."""
    proof = prove(logprobs(9, 40, -19), logprobs(9, 10, 11), REFERENCE, beta=0.1)
    assert proof.kept == pytest.approx(1.0)
    assert proof.is_enough
    assert proof.is_drowned


def test_a_margin_that_may_be_zero_leaves_nothing_to_keep() -> None:
    proof = prove(logprobs(0, 0, 0), logprobs(-9, 0, 10), REFERENCE, beta=0.1)
    assert proof.kept is None
    assert proof.is_enough
    assert "interval of the run's own margin includes 0" in proof.lines()[0]


def test_a_margin_below_zero_can_be_kept_too() -> None:
    proof = prove(logprobs(-9, -10, -11), logprobs(-9, -10, -11), REFERENCE, beta=0.1)
    assert proof.kept == pytest.approx(1.0)


def edited(folder: Path, **changes: Any) -> Source:
    """A copy of a policy whose dpo.json says something else."""
    copy = Path("policy")
    shutil.copytree(folder, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("digests.json"))
    record = json.loads((copy / "dpo.json").read_text())
    (copy / "dpo.json").write_text(json.dumps(record | changes))
    return locate(copy)


@pytest.mark.usefixtures("workplace")
def test_the_pairs_are_those_the_run_held_out(policy_folder: Path) -> None:
    trial = plan_trial(locate(policy_folder))
    assert len(trial.examples) == 4
    assert (trial.beta, trial.max_length, trial.dtype) == (0.3, 96, None)
    assert trial.reference.folder == ORACLE
    decoded = trial.chat.tokenizer.decode(trial.examples[0].prompt_ids)
    assert "otter number 10." in decoded
    done: list[int] = []
    found = score(trial, trial.reference, "reference", lambda name, total, more: done.append(more))
    assert found.shape == (2, 4)
    assert sum(done) == 4


def test_a_file_that_has_moved_is_named(policy_folder: Path, workplace: Path) -> None:
    (workplace / "pairs.json").rename(workplace / "elsewhere.json")
    source = locate(policy_folder)
    with pytest.raises(NotMeasurableError, match=r"pairs.json, .* is not there") as error:
        plan_trial(source)
    assert error.value.moved
    assert len(plan_trial(source, "elsewhere.json").examples) == 4
    with pytest.raises(UsageError, match=r"absent.json: no such file"):
        plan_trial(source, "absent.json")


def test_another_file_is_not_taken_for_the_runs(policy_folder: Path, workplace: Path) -> None:
    (workplace / "pairs.json").write_text(json.dumps(ROWS[:12]))
    source = locate(policy_folder)
    with pytest.raises(NotMeasurableError, match=r"has no pair 13, which the run used"):
        plan_trial(source)
    with pytest.raises(DataError, match="has no pair 13"):
        plan_trial(source, "pairs.json")
    (workplace / "pairs.json").write_text("[")
    with pytest.raises(NotMeasurableError, match=r"pairs.json:1"):
        plan_trial(source)


def test_pairs_of_their_own_file_are_read_from_it(policy_folder: Path, workplace: Path) -> None:
    (workplace / "held.json").write_text(json.dumps(ROWS))
    (workplace / "pairs.json").unlink()
    split = {"train": ["71", "72"], "held_out": ["1", "2"]}
    source = edited(
        policy_folder,
        data={"file": "pairs.json", "split": split},
        settings={"eval_data": "held.json", "dtype": "bfloat16"},
    )
    trial = plan_trial(source)
    assert len(trial.examples) == 2
    assert trial.dtype == "bfloat16"
    assert plan_trial(source, exported="float32").dtype == "float32"


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"data": {"file": "pairs.json", "split": {"train": ["1"], "held_out": []}}},
            "held out no",
        ),
        ({"data": {"file": "pairs.json"}}, "does not say which pairs were held out"),
        ({"trained_from": {}}, "does not say what it was trained from"),
        ({"trained_from": {"model": "./gone"}}, "is not there .*gone"),
        ({"settings": {"adapter": "./gone", "adapter_reference": "start"}}, "is not there .*gone"),
        ({"settings": {"max_length": 2}}, "can be scored"),
    ],
)
def test_what_is_missing_is_said(policy_folder: Path, changes: Any, reason: str) -> None:
    with pytest.raises(NotMeasurableError, match=reason):
        plan_trial(edited(policy_folder, **changes))


def test_a_model_that_no_run_made_can_not_be_measured() -> None:
    with pytest.raises(NotMeasurableError, match=r"no dpo.json"):
        plan_trial(locate(ORACLE))
