"""Displacement: counted by hand, and the place of a loss against a plain forward of both models."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.convert.sources import load_model
from mlx_dpo.insight import displacement, scoring
from mlx_dpo.insight.displacement import (
    displaced_by_run,
    fallen_pairs,
    looked_into,
    place_of_loss,
    shift_of,
)
from mlx_dpo.insight.scoring import LoadedModel, open_model
from mlx_dpo.models.adaptable import choose_modules
from mlx_dpo.models.adapters import attach, new_adapter
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.job import Job, prepare
from mlx_dpo.training.trainer import Scores
from tests.insight.test_rewards import random_pairs
from tests.runs.conftest import ORACLE, settings, workplace

__all__ = ["workplace"]  # a fixture, used by its name

PAIRS = random_pairs(12)


@pytest.fixture(scope="module")
def reference() -> LoadedModel:
    return open_model(str(ORACLE))


@pytest.fixture
def job(workplace: Path) -> Job:
    """Of a run with adapters, nothing trained yet."""
    return prepare(settings(method="lora"), keep=False)


def lost(job: Job) -> tuple[Scores, Scores]:
    """Log-probs of a policy under which the held-out answers have lost 2 to 4 nats; before it."""
    losses = -np.linspace(2, 4, len(job.held_out.ids), dtype=np.float32)
    return np.stack([losses, losses]), np.zeros((2, len(losses)), np.float32)


def test_a_shift_is_what_a_person_counts() -> None:
    policy = np.array([[-9, -20, -33, -40], [0, 0, 0, 0]], dtype=np.float32)
    before = np.array([[-10, -20, -30, -36], [-1, 0, 2, 4]], dtype=np.float32)
    found = shift_of(policy, before)  # +1, 0, -3, -4
    assert (found.num_pairs, found.num_fallen, found.mean) == (4, 2, -1.5)
    half = 1.96 * np.std([1, 0, -3, -4], ddof=1) / 2
    assert found.interval == pytest.approx((-1.5 - half, -1.5 + half))
    assert not found.matters
    fallen = fallen_pairs(policy, before, list("abcd"))
    assert [(f.id, f.row, f.chosen, f.rejected) for f in fallen] == [
        ("d", 3, -4, -4),
        ("c", 2, -3, -2),
    ]


@pytest.mark.parametrize(
    ("changes", "matters"),
    [
        ([-1.0] * 9, False),  # too few pairs
        ([-1.0, -2.0] * 10, True),
        ([-1.0, 1.0] * 10, False),
        ([-1.0] * 18 + [40.0] * 4, True),  # the mean rises, and most fall
        ([1.0, 2.0] * 10, False),
        ([-0.001] * 9 + [0.001] * 9, False),  # rounding
        ([-0.004] * 50, False),
    ],
)
def test_it_matters_where_chosen_answers_surely_fall(changes: list[float], matters: bool) -> None:
    before = np.zeros((2, len(changes)), np.float32)
    policy = np.array([changes, changes], np.float32)
    assert shift_of(policy, before).matters == matters


@pytest.mark.parametrize("positions", [1, 64])
def test_the_place_of_a_loss_is_that_of_a_plain_forward(
    positions: int,
    policy_folder: Path,
    reference: LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "POSITIONS", positions)
    policy = open_model(str(policy_folder))
    for example in PAIRS[:4]:
        prompt, chosen, _ = example
        ours, theirs = (
            np.array(loaded.model(mx.array([[*prompt, *chosen]]))[0], dtype=np.float64)
            for loaded in (policy, reference)
        )
        ours, theirs = (
            (each - np.log(np.exp(each).sum(-1, keepdims=True)))[len(prompt) - 1 : -1]
            for each in (ours, theirs)
        )
        at = range(len(chosen))
        row = int((ours[at, chosen] - theirs[at, chosen]).argmin())
        gains = np.exp(ours[row]) - np.exp(theirs[row])
        found = place_of_loss(policy.model, reference.model, example, policy.chat)
        assert found is not None
        assert found.position == row + 1
        assert found.context == policy.chat.tokenizer.decode(chosen[:row])[-40:]
        assert found.lost.token == policy.chat.tokenizer.decode([chosen[row]])
        assert found.lost.after == pytest.approx(np.exp(ours[row, chosen[row]]), rel=1e-3)
        assert found.lost.before == pytest.approx(np.exp(theirs[row, chosen[row]]), rel=1e-3)
        best = np.argsort(-gains)[:3]
        best = best[gains[best] >= 1e-3]
        assert [g.token for g in found.gained] == [policy.chat.tokenizer.decode([t]) for t in best]
        assert [g.after - g.before for g in found.gained] == pytest.approx(gains[best], rel=1e-3)


def test_an_answer_without_a_predicted_token_has_no_place(reference: LoadedModel) -> None:
    alone = PreferenceExample([], [5], [6])
    assert place_of_loss(reference.model, reference.model, alone, reference.chat) is None
    two = PreferenceExample([], [5, 7], [6])
    found = place_of_loss(reference.model, reference.model, two, reference.chat)
    assert found is not None
    assert (found.position, found.gained) == (2, [])


def test_only_the_worst_are_looked_into_and_only_where_they_lost_a_nat(
    policy_folder: Path, reference: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = open_model(str(policy_folder)).model
    losses = np.array([[-9.0, -1.0, -0.5, -3.0], [0] * 4], np.float32)
    fallen = fallen_pairs(losses, np.zeros_like(losses), list("abcd"))
    asked: list[bool] = []

    def models() -> tuple[object, object]:
        asked.append(True)
        return policy, reference.model

    def places() -> str:
        found = looked_into(fallen, PAIRS, models, reference.chat)  # type: ignore[arg-type]
        return "".join(pair.id for pair in found if pair.place is not None)

    assert places() == "adb"
    monkeypatch.setattr(displacement, "MOST", 2)
    assert places() == "ad"
    assert looked_into(fallen, PAIRS, lambda: None, reference.chat) == fallen
    monkeypatch.setattr(displacement, "LEAST", 10.0)
    asked.clear()
    assert (places(), asked) == ("", [])


def test_a_run_with_adapters_is_looked_into_without_a_second_model(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(displacement, "load_model", None)
    found = displaced_by_run(job, *lost(job))
    assert found is not None
    worst = found.fallen[0]
    assert worst.chosen == pytest.approx(-4)
    assert worst.place is not None
    assert worst.prompt.startswith("Tell me about the")
    Path("pairs.json").unlink()
    found = displaced_by_run(job, *lost(job))
    assert found is not None
    assert found.fallen[0] == replace(worst, prompt="")
    none = np.zeros((2, 0), np.float32)
    assert displaced_by_run(job, none, none) is None


def test_a_run_of_all_weights_loads_the_reference_once_more_where_there_is_room(
    job: Job,
) -> None:
    config = replace(job.config, method="full")
    whole = replace(job, policy=load_model(job.source), config=config)
    found = displacement._models_of(whole)
    assert found is not None
    assert found[0] is whole.policy
    ids = mx.array([[5, 6, 7]])
    assert mx.array_equal(found[1](ids), load_model(job.source)(ids))
    changed = replace(whole, files=whole.files._replace(weights={}))
    assert displacement._models_of(changed) is None
    # Where each tensor is updated as soon as its gradient is there, there is no such room.
    assert displacement._models_of(replace(whole, config=replace(config, grad_clip=0.0))) is None


def test_an_adapter_that_training_started_from_is_part_of_the_reference(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = load_model(job.source)
    made = new_adapter(start, choose_modules(start, "all", None), rank=2, scale=3.0, seed=1)
    first = {path: replace(part, b=mx.full(part.b.shape, 0.05)) for path, part in made.items()}
    attach(start, first)
    monkeypatch.setattr(displacement, "adapter_to_train", lambda *_: first)
    monkeypatch.setattr(displacement, "load_model", None)
    started = replace(job, config=replace(job.config, adapter="a", adapter_reference="start"))
    found = displacement._models_of(started)
    assert found is not None
    ids = mx.array([[5, 6, 7]])
    assert mx.allclose(found[1](ids), start(ids), atol=1e-5)
    assert not mx.allclose(found[0](ids), start(ids), atol=1e-3)  # the policy is as it was


def test_a_shortage_costs_the_places_and_not_the_run(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[malloc] Unable to allocate")

    monkeypatch.setattr(displacement, "place_of_loss", full)
    found = displaced_by_run(job, *lost(job))
    assert found is not None
    assert found.fallen[0].place is None
    assert found.shift.num_fallen == len(job.held_out.ids)
