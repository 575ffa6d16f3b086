"""The course's contract: collate, log-probs, loss, trainer.

Run one group with ``-k pad_and_collate``, ``-k sequence_logprob``, ``-k dpo_loss`` or
``-k trainer``. In a mask, a sign or a scale a DPO bug rarely fails loudly, so rows are ragged,
invariants come before numbers, and gradients are checked through SGD: Adam hides a constant factor.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_dpo import DPOTrainer, PreferenceExample, dpo_loss, pad_and_collate_pref, sequence_logprob
from mlx_dpo.errors import DataError, NonFiniteError
from mlx_dpo.models.parameters import fingerprint, named_arrays
from mlx_dpo.training.reference import cached_reference, score_in_batches

LOG_2 = float(np.float32(math.log(2)))
Pairs = list[PreferenceExample]

# --- pad_and_collate_pref: the one place where targets are shifted -------------------------------


def collate_one(
    prompt: list[int], chosen: list[int], rejected: list[int], max_seq_len: int, pad_id: int = 0
) -> list[Any]:
    """The six arrays of a single pair, as the lists of their only row."""
    arrays = pad_and_collate_pref(
        [PreferenceExample(prompt, chosen, rejected)], max_seq_len=max_seq_len, pad_id=pad_id
    )
    return [array[0].tolist() for array in arrays]


def test_pad_and_collate_gives_the_arrays_of_its_docstring() -> None:
    cx, cy, cm, rx, ry, rm = pad_and_collate_pref(
        [PreferenceExample([7, 8], [1, 2], [3])], max_seq_len=5, pad_id=0
    )
    assert cx.tolist() == [[7, 8, 1, 2]]
    assert cy.tolist() == [[8, 1, 2, 0]]
    assert cm.tolist() == [[0, 1, 1, 0]]
    assert rx.tolist() == [[7, 8, 3, 0]]
    assert ry.tolist() == [[8, 3, 0, 0]]
    assert rm.tolist() == [[0, 1, 0, 0]]


def test_pad_and_collate_pads_each_side_of_ragged_rows_to_one_width(ragged_pairs: Pairs) -> None:
    arrays = pad_and_collate_pref(ragged_pairs, max_seq_len=20, pad_id=0)
    assert [array.shape for array in arrays] == [(len(ragged_pairs), 19)] * 6
    assert [array.dtype for array in arrays] == [mx.int32, mx.int32, mx.float32] * 2


def test_pad_and_collate_scores_the_response_tokens_and_nothing_else(ragged_pairs: Pairs) -> None:
    cx, cy, cm, rx, ry, rm = pad_and_collate_pref(ragged_pairs, max_seq_len=20, pad_id=0)
    for arrays, side in (((cx, cy, cm), 1), ((rx, ry, rm), 2)):
        for x, y, mask, pair in zip(*map(np.array, arrays), ragged_pairs, strict=True):
            assert y[mask == 1].tolist() == pair[side]
            # The model reads the last prompt token when it says the first response token.
            assert x[mask == 1][0] == pair.prompt_ids[-1]


def test_pad_and_collate_targets_are_inputs_one_step_ahead(ragged_pairs: Pairs) -> None:
    cx, cy, _, rx, ry, _ = pad_and_collate_pref(ragged_pairs, max_seq_len=20, pad_id=0)
    assert mx.array_equal(cx[:, 1:], cy[:, :-1])
    assert mx.array_equal(rx[:, 1:], ry[:, :-1])


def test_pad_and_collate_keeps_the_first_ids_of_a_row_that_is_too_long() -> None:
    cx, cy, cm, _, ry, rm = collate_one([7, 8], [1, 2, 3, 4], [5], max_seq_len=4)
    assert (cx, cy, cm) == ([7, 8, 1], [8, 1, 2], [0, 1, 1])
    assert (ry, rm) == ([8, 5, 0], [0, 1, 0])


@pytest.mark.parametrize("prompt", [[7, 8, 9], [7, 8, 9, 6]], ids=["fills", "overflows"])
def test_pad_and_collate_leaves_no_mask_where_the_response_is_cut_away(prompt: list[int]) -> None:
    _, cy, cm, _, _, rm = collate_one(prompt, [1], [2], max_seq_len=3)
    assert cy == [8, 9]
    assert cm == rm == [0, 0]


def test_pad_and_collate_scores_real_pad_ids_inside_a_response() -> None:
    """Where the pad token is also EOS, a mask by id would never teach the model to stop."""
    _, cy, cm, _, ry, rm = collate_one([7], [9, 0, 5, 0], [0], max_seq_len=7, pad_id=0)
    assert (cy, cm) == ([9, 0, 5, 0, 0, 0], [1, 1, 1, 1, 0, 0])
    assert (ry, rm) == ([0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0])


def test_pad_and_collate_never_scores_the_first_token_of_an_empty_prompt() -> None:
    """Nothing is read before it, so nothing predicts it."""
    _, cy, cm, *_ = collate_one([], [1, 2, 3], [4], max_seq_len=4)
    assert (cy, cm) == ([2, 3, 0], [1, 1, 0])


@pytest.mark.parametrize(
    ("examples", "max_seq_len"),
    [([], 8), ([PreferenceExample([1], [2], [3])], 1), ([PreferenceExample([1], [2], [3])], 0)],
)
def test_pad_and_collate_refuses_what_has_no_targets(examples: Pairs, max_seq_len: int) -> None:
    with pytest.raises(ValueError, match=r"at least one example|max_seq_len must be at least 2"):
        pad_and_collate_pref(examples, max_seq_len=max_seq_len, pad_id=0)


# --- sequence_logprob ----------------------------------------------------------------------------


def ragged_logits(dtype: mx.Dtype = mx.float32) -> tuple[mx.array, mx.array, mx.array]:
    """Logits (4, 30, 50), targets, and masks that begin and end elsewhere in each row."""
    rng = np.random.default_rng(0)
    logits = mx.array(rng.normal(scale=4, size=(4, 30, 50)).astype(np.float32)).astype(dtype)
    targets = mx.array(rng.integers(0, 50, size=(4, 30)).astype(np.int32))
    mask = np.zeros((4, 30), dtype=np.float32)
    for row, (begin, end) in enumerate([(0, 30), (3, 17), (29, 30), (8, 9)]):
        mask[row, begin:end] = 1
    return logits, targets, mx.array(mask)


def logprob_in_float64(logits: mx.array, targets: mx.array, mask: mx.array) -> Any:
    """The definition, token by token."""
    x = np.array(logits.astype(mx.float32), dtype=np.float64)
    log_z = np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1)) + x.max(-1)
    picked = np.take_along_axis(x, np.array(targets)[..., None], axis=-1)[..., 0]
    return ((picked - log_z) * np.array(mask)).sum(-1)


def test_sequence_logprob_equals_float64_on_ragged_rows() -> None:
    arrays = ragged_logits()
    found = np.array(sequence_logprob(*arrays))
    np.testing.assert_allclose(found, logprob_in_float64(*arrays), rtol=1e-6)


def test_sequence_logprob_of_equal_logits_counts_tokens() -> None:
    """Of V equally likely tokens each costs log V: a response of 5 costs 5 log V."""
    mask = mx.array([[0, 1, 1, 1, 1, 1, 0.0]])
    found = sequence_logprob(mx.zeros((1, 7, 16)), mx.zeros((1, 7), dtype=mx.int32), mask)
    assert found.item() == pytest.approx(-5 * math.log(16), rel=1e-6)


def test_sequence_logprob_sums_so_that_twice_the_tokens_cost_twice_as_much() -> None:
    logits, targets, mask = ragged_logits()
    once = sequence_logprob(logits, targets, mask)
    twice = sequence_logprob(*(mx.concatenate([a, a], axis=1) for a in (logits, targets, mask)))
    np.testing.assert_allclose(np.array(twice), 2 * np.array(once), rtol=1e-6)


def test_sequence_logprob_of_an_empty_mask_is_zero() -> None:
    logits, targets, mask = ragged_logits()
    assert sequence_logprob(logits, targets, mx.zeros_like(mask)).tolist() == [0.0] * 4


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_sequence_logprob_of_half_precision_logits_is_computed_in_float32(dtype: mx.Dtype) -> None:
    """What half precision cost is in the logits already; nothing may be added to it.

    The sums are about -250. In bfloat16, neighbours there lie 1 or 2 nats apart.
    """
    arrays = ragged_logits(dtype)
    found = sequence_logprob(*arrays)
    assert found.dtype == mx.float32
    np.testing.assert_allclose(np.array(found), logprob_in_float64(*arrays), rtol=1e-6)


def test_sequence_logprob_ignores_infinities_that_do_not_count() -> None:
    """0 * inf is NaN, so a mask may not be a factor."""
    logits, targets, mask = ragged_logits()
    expected = sequence_logprob(logits, targets, mask)
    spoilt = mx.where((mask > 0)[..., None], logits, -mx.inf)
    assert mx.array_equal(sequence_logprob(spoilt, targets, mask), expected)


def test_sequence_logprob_has_no_gradient_where_the_mask_is_zero() -> None:
    logits, targets, mask = ragged_logits()
    grad = mx.grad(lambda x: sequence_logprob(x, targets, mask).sum())(logits)
    reached = mx.abs(grad).sum(axis=-1) > 0
    assert mx.array_equal(reached, mask > 0)


@pytest.mark.parametrize(
    ("logits", "targets", "mask"),
    [
        ((2, 5, 9), (2, 4), (2, 4)),  # logits not sliced to the targets
        ((2, 5, 9), (2, 5), (2, 4)),
        ((2, 5, 9), (5,), (5,)),
        ((5, 9), (5,), (5,)),
    ],
)
def test_sequence_logprob_refuses_shapes_that_disagree(
    logits: tuple[int, ...], targets: tuple[int, ...], mask: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"expected logits \(B, T, V\)"):
        sequence_logprob(mx.zeros(logits), mx.zeros(targets, dtype=mx.int32), mx.zeros(mask))


# --- dpo_loss ------------------------------------------------------------------------------------


def test_dpo_loss_of_margins_0_1_and_2() -> None:
    """By hand, with beta 0.5.

    Rewards 0.5 * (policy - reference):

    ==== ======================== ========================== ======
    pair chosen                   rejected                   margin
    ==== ======================== ========================== ======
    0    0.5 * (-10 - -10) =  0   0.5 * (-20 - -20) =  0     0
    1    0.5 * (-14 - -12) = -1   0.5 * (-19 - -15) = -2     1
    2    0.5 * (-30 - -34) =  2   0.5 * (-8 - -8)   =  0     2
    ==== ======================== ========================== ======

    -log sigmoid(margin) = log(1 + e^-margin): 0.693147, 0.313262, 0.126928; mean 0.377779.
    A margin of 0 is no preference, so accuracy is 2/3.
    """
    loss, metrics = dpo_loss(
        mx.array([-10.0, -14.0, -30.0]),
        mx.array([-20.0, -19.0, -8.0]),
        mx.array([-10.0, -12.0, -34.0]),
        mx.array([-20.0, -15.0, -8.0]),
        beta=0.5,
    )
    assert loss.item() == pytest.approx(0.377779, abs=1e-6)
    assert metrics["chosen_reward"].item() == pytest.approx(1 / 3)
    assert metrics["rejected_reward"].item() == pytest.approx(-2 / 3)
    assert metrics["reward_margin"].item() == pytest.approx(1)
    assert metrics["accuracy"].item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_dpo_loss_is_exactly_log_2_while_policy_equals_reference(beta: float) -> None:
    chosen, rejected = mx.array([-3.3, -250.1, 0.0]), mx.array([-7.7, -0.3, -999.9])
    loss, metrics = dpo_loss(chosen, rejected, chosen, rejected, beta=beta)
    assert loss.item() == LOG_2
    assert {name: value.item() for name, value in metrics.items()} == dict.fromkeys(metrics, 0.0)


def test_dpo_loss_lets_no_gradient_into_the_reference() -> None:
    def loss(*logprobs: mx.array) -> mx.array:
        return dpo_loss(*logprobs, beta=0.1)[0]

    logprobs = [mx.array(values) for values in ([-5.0, -6], [-9.0, -4], [-5.5, -6], [-8.0, -4.4])]
    policy_chosen, policy_rejected, *reference = mx.grad(loss, argnums=(0, 1, 2, 3))(*logprobs)
    assert all(mx.array_equal(grad, mx.zeros(2)) for grad in reference)
    assert policy_chosen.max().item() < 0  # a higher chosen log-prob lowers the loss
    assert policy_rejected.min().item() > 0


def test_dpo_loss_gradient_at_the_start_is_half_beta_over_the_pairs() -> None:
    """d/dx of -log sigmoid(beta x) at 0 is -beta/2, and the loss is a mean over pairs."""
    zeros = mx.zeros(4)
    grad = mx.grad(lambda x: dpo_loss(x, zeros, zeros, zeros, beta=0.3)[0])(zeros)
    np.testing.assert_allclose(np.array(grad), -0.3 / 2 / 4, rtol=1e-6)


def test_dpo_loss_counts_a_tie_as_no_preference() -> None:
    zeros = mx.zeros(4)
    _, metrics = dpo_loss(mx.array([1e-6, 0.0, -1e-6, 5.0]), zeros, zeros, zeros, beta=0.1)
    assert metrics["accuracy"].item() == 0.5


def test_dpo_loss_rewards_are_proportional_to_beta() -> None:
    rng = np.random.default_rng(1)
    logprobs = [mx.array(rng.normal(-50, 5, size=6).astype(np.float32)) for _ in range(4)]
    _, small = dpo_loss(*logprobs, beta=0.1)
    _, large = dpo_loss(*logprobs, beta=0.4)
    for name in ("chosen_reward", "rejected_reward", "reward_margin"):
        assert large[name].item() == pytest.approx(4 * small[name].item(), rel=1e-5)
    assert large["accuracy"].item() == small["accuracy"].item()


def test_dpo_loss_margin_is_chosen_minus_rejected_reward() -> None:
    """Signed: pairs the policy has the wrong way round pull the mean down."""
    zeros = mx.zeros(3)
    _, metrics = dpo_loss(mx.array([1.0, -9, 2]), mx.array([2.0, 3, -4]), zeros, zeros, beta=0.1)
    expected = metrics["chosen_reward"].item() - metrics["rejected_reward"].item()
    assert metrics["reward_margin"].item() == pytest.approx(expected)
    assert expected == pytest.approx(0.1 * (-1 - 12 + 6) / 3)


@pytest.mark.parametrize(("margin", "expected"), [(5000.0, 0.0), (-5000.0, 500.0)])
def test_dpo_loss_of_huge_margins_is_finite(margin: float, expected: float) -> None:
    """log(sigmoid(x)) written out would overflow."""
    zero = mx.zeros(1)
    loss, _ = dpo_loss(mx.array([margin]), zero, zero, zero, beta=0.1)
    assert loss.item() == pytest.approx(expected)


# --- trainer -------------------------------------------------------------------------------------

MakeTrainer = Callable[..., DPOTrainer]


@pytest.fixture
def make_trainer(make_model: Callable[[], nn.Module], ragged_pairs: Pairs) -> MakeTrainer:
    """Makes a trainer of the tiny model on the ragged pairs; keywords replace its arguments."""

    def make(**changes: Any) -> DPOTrainer:
        arguments: dict[str, Any] = {
            "model": make_model(),
            "examples": ragged_pairs,
            "max_seq_len": 20,
            "pad_id": 0,
            "beta": 0.1,
            "batch_size": 4,
            "max_steps": 6,
            "max_lr": 1e-2,
            **changes,
        }
        if "reference" in arguments:
            arguments.setdefault("ref_model", None)
        elif "ref_model" not in arguments:
            arguments["ref_model"] = make_model()
        return DPOTrainer(arguments.pop("model"), **arguments)

    return make


class RecordingReference:
    """A reference that says 0 to everything and remembers which pairs it was asked for."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, examples: Sequence[PreferenceExample]) -> mx.array:
        # In the ragged pairs the first prompt token is 40 + the pair's number.
        self.batches.append([example.prompt_ids[0] - 40 for example in examples])
        return mx.zeros((2, len(examples)))


def visited(make_trainer: MakeTrainer, num_steps: int, **changes: Any) -> list[list[int]]:
    """Numbers of the pairs of each batch, in the order they were trained on."""
    reference = RecordingReference()
    trainer = make_trainer(reference=reference, max_lr=0.0, **changes)
    for _ in range(num_steps):
        trainer.train_step()
    return reference.batches


def movement(make_trainer: MakeTrainer, pairs: Pairs, **changes: Any) -> dict[str, Any]:
    """How far one SGD step at learning rate 1 moves each tensor."""
    trainer = make_trainer(optimizer=optim.SGD(learning_rate=1.0), max_lr=1.0, **changes)
    before = arrays_of(trainer)
    trainer.train_step(pairs)
    return {name: value - before[name] for name, value in arrays_of(trainer).items()}


def arrays_of(trainer: DPOTrainer) -> dict[str, Any]:
    return {name: np.array(a) for name, a in named_arrays(trainer.model.parameters()).items()}


def assert_all_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(np.abs(value).max(), 1e-6)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.25),  # warm-up of four steps to 1.0
        (1, 0.5),
        (3, 1.0),
        (4, 1.0),  # the cosine begins at its top
        (6, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2),
        (8, 0.55),  # half-way between 1.0 and 0.1
        (11, 0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2),
        (12, 0.1),  # the end, and after it
        (1000, 0.1),
    ],
)
def test_trainer_lr_warms_up_then_falls_along_a_cosine(
    make_trainer: MakeTrainer, step: int, expected: float
) -> None:
    trainer = make_trainer(max_steps=12, warmup_steps=4, max_lr=1.0, min_lr=0.1)
    assert trainer.lr(step) == pytest.approx(expected, rel=1e-9)


def test_trainer_lr_of_a_run_that_is_all_warm_up(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=4, warmup_steps=4, max_lr=1.0, min_lr=0.1)
    assert [trainer.lr(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 0.1]


def test_trainer_lr_without_a_step_is_that_of_the_next_step(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(warmup_steps=3)
    for step in range(3):
        assert trainer.lr() == trainer.lr(step)
        assert trainer.train_step()["lr"] == trainer.lr(step)


def test_trainer_moves_by_the_learning_rate_of_the_step(
    make_trainer: MakeTrainer, ragged_pairs: Pairs
) -> None:
    """With SGD the first step of a warm-up of four moves a quarter as far."""
    pairs = ragged_pairs[:4]
    whole = movement(make_trainer, pairs)
    warming = movement(make_trainer, pairs, warmup_steps=4)
    assert_all_close(warming, {name: 0.25 * moved for name, moved in whole.items()})


def test_trainer_starts_at_exactly_log_2_and_zero_rewards(make_trainer: MakeTrainer) -> None:
    metrics = make_trainer().train_step()
    assert list(metrics) == [
        *("loss", "lr", "grad_norm"),
        *("chosen_reward", "rejected_reward", "reward_margin", "accuracy"),
    ]
    assert metrics["loss"] == LOG_2
    assert [metrics[name] for name in list(metrics)[3:]] == [0.0] * 4
    assert metrics["grad_norm"] > 0


def test_trainer_moves_the_policy_and_not_a_bit_of_the_reference(
    make_trainer: MakeTrainer, make_model: Callable[[], nn.Module]
) -> None:
    policy, reference = make_model(), make_model()
    before = fingerprint(reference)
    assert fingerprint(policy) == before
    make_trainer(model=policy, ref_model=reference).train()
    assert fingerprint(reference) == before
    assert fingerprint(policy) != before
    assert named_arrays(reference.trainable_parameters()) == {}


def test_trainer_learns_to_prefer_what_was_chosen(
    make_trainer: MakeTrainer, ragged_pairs: Pairs
) -> None:
    trainer = make_trainer(max_steps=30)
    assert trainer.evaluate(ragged_pairs)["accuracy"] == 0.0
    trainer.train()
    after = trainer.evaluate(ragged_pairs)
    assert after["accuracy"] == 1.0
    assert after["loss"] < 0.3


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 10, 64])
def test_trainer_visits_each_pair_once_an_epoch(make_trainer: MakeTrainer, batch_size: int) -> None:
    num_steps = -(-10 // batch_size)
    batches = visited(make_trainer, 2 * num_steps, batch_size=batch_size)
    for epoch in (batches[:num_steps], batches[num_steps:]):
        assert sorted(chain(*epoch)) == list(range(10))


def test_trainer_keeps_the_last_batch_of_an_epoch_though_it_is_smaller(
    make_trainer: MakeTrainer,
) -> None:
    assert [len(batch) for batch in visited(make_trainer, 6)] == [4, 4, 2, 4, 4, 2]


def test_trainer_order_follows_from_the_seed(make_trainer: MakeTrainer) -> None:
    first = visited(make_trainer, 6, seed=7)
    assert visited(make_trainer, 6, seed=7) == first
    assert visited(make_trainer, 6, seed=8) != first
    assert first[:3] != first[3:], "both epochs in one order"


def test_trainer_restored_from_its_state_goes_on_with_the_same_pairs(
    make_trainer: MakeTrainer,
) -> None:
    straight = visited(make_trainer, 6)
    stopped = make_trainer(reference=RecordingReference())
    for _ in range(2):
        stopped.train_step()
    reference = RecordingReference()
    resumed = make_trainer(reference=reference)
    resumed.restore(stopped.state())
    for _ in range(4):
        resumed.train_step()
    assert resumed.step == 6
    assert reference.batches == straight[2:]


@pytest.mark.parametrize("batch_size", [1, 2, 4], ids="batches of {}".format)
def test_trainer_accumulation_equals_one_undivided_batch(
    make_trainer: MakeTrainer, ragged_pairs: Pairs, batch_size: int
) -> None:
    """Six pairs in batches of 4 leave one of 2: it must count for two pairs, not for a half."""
    pairs = ragged_pairs[:6]
    # A reference of zeros makes every pair's weight in the gradient its own.
    reference = RecordingReference()
    whole = movement(make_trainer, pairs, batch_size=6, reference=reference)
    parts = movement(make_trainer, pairs, batch_size=batch_size, reference=reference)
    assert_all_close(parts, whole)


def test_trainer_metrics_of_an_accumulated_step_are_means_over_pairs(
    make_trainer: MakeTrainer, ragged_pairs: Pairs
) -> None:
    reference = RecordingReference()
    whole = make_trainer(batch_size=6, reference=reference).train_step(ragged_pairs[:6])
    parts = make_trainer(batch_size=4, reference=reference).train_step(ragged_pairs[:6])
    assert parts == pytest.approx(whole, rel=1e-5)


def test_trainer_takes_batch_size_times_accumulation_pairs_a_step(
    make_trainer: MakeTrainer,
) -> None:
    batches = visited(make_trainer, 2, batch_size=3, grad_accumulation=2)
    assert [len(batch) for batch in batches] == [3, 3, 3, 1]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 64])
def test_trainer_evaluate_equals_a_mean_over_single_pairs(
    make_trainer: MakeTrainer, ragged_pairs: Pairs, batch_size: int
) -> None:
    """Whatever the batches: never a mean of means."""
    trainer = make_trainer(batch_size=batch_size)
    for _ in range(3):
        trainer.train_step(ragged_pairs[:2])
    found = trainer.evaluate(ragged_pairs)
    single = [trainer.evaluate([pair]) for pair in ragged_pairs]
    assert list(found) == ["loss", "chosen_reward", "rejected_reward", "reward_margin", "accuracy"]
    for name, value in found.items():
        assert value == pytest.approx(np.mean([s[name] for s in single]), abs=1e-5), name


def test_trainer_evaluate_visits_each_pair_once_and_changes_nothing(
    make_trainer: MakeTrainer, ragged_pairs: Pairs
) -> None:
    reference = RecordingReference()
    trainer = make_trainer(reference=reference)
    before = fingerprint(trainer.model), trainer.state()
    trainer.evaluate(ragged_pairs)
    assert sorted(chain(*reference.batches)) == list(range(10))
    assert (fingerprint(trainer.model), trainer.state()) == before


def test_trainer_evaluate_refuses_no_pairs(make_trainer: MakeTrainer) -> None:
    with pytest.raises(ValueError, match="no examples"):
        make_trainer().evaluate([])


def test_trainer_check_of_the_start_finds_nothing_but_rounding(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer()
    before = fingerprint(trainer.model), trainer.state()
    found = trainer.check_start()
    assert found["loss"] == LOG_2
    assert found["grad_norm"] > 0
    assert found["largest_reward"] <= found["allowed_reward"] < 1e-3
    assert (fingerprint(trainer.model), trainer.state()) == before


@pytest.mark.parametrize("options", [{}, {"fused_update": True}, {"grad_accumulation": 2}])
def test_trainer_check_of_the_start_takes_the_largest_batch_of_the_first_epoch(
    make_trainer: MakeTrainer, ragged_pairs: Pairs, options: dict[str, Any]
) -> None:
    """So that a machine without the memory for it says so before the first step."""
    reference = RecordingReference()
    make_trainer(reference=reference, batch_size=1, max_steps=10, **options).check_start()
    by_length = sorted(
        range(10),
        key=lambda i: (
            -len(ragged_pairs[i].prompt_ids * 2)
            - len(ragged_pairs[i].chosen_ids + ragged_pairs[i].rejected_ids)
        ),
    )
    taken = [[row] for row in by_length[: options.get("grad_accumulation", 1)]]
    assert reference.batches == taken * 2


def test_trainer_check_of_the_start_is_the_same_layer_by_layer(make_trainer: MakeTrainer) -> None:
    whole, layered = make_trainer().check_start(), make_trainer(fused_update=True).check_start()
    assert layered.pop("grad_norm") == pytest.approx(whole.pop("grad_norm"), rel=1e-6)
    assert layered == whole


def test_trainer_check_of_the_start_finds_a_reference_that_is_another_model(
    make_trainer: MakeTrainer, make_model: Callable[[], nn.Module]
) -> None:
    other = make_model()
    other.update(tree_map(lambda weight: weight * 1.01, other.parameters()))
    found = make_trainer(ref_model=other).check_start()
    assert found["largest_reward"] > found["allowed_reward"]


def test_trainer_train_returns_its_history(make_trainer: MakeTrainer, ragged_pairs: Pairs) -> None:
    """Steps count from 0; the last step is recorded and evaluated whatever the intervals."""
    trainer = make_trainer(max_steps=8, log_every=3, eval_every=5)
    history = trainer.train(ragged_pairs[:3])
    assert history["step"] == [0, 3, 6, 7]
    assert history["val_step"] == [4, 7]
    for name in ("train_loss", "lr", "grad_norm", "chosen_reward", "rejected_reward"):
        assert len(history[name]) == 4, name
    assert len(history["reward_margin"]) == len(history["accuracy"]) == 4
    for name in ("val_loss", "val_accuracy", "val_reward_margin"):
        assert len(history[name]) == 2, name
    assert len(history) == 12
    assert history["train_loss"][0] == LOG_2
    assert history["lr"] == [trainer.lr(step) for step in (0, 3, 6, 7)]
    assert trainer.step == 8


def test_trainer_train_without_held_out_pairs_has_no_validation(make_trainer: MakeTrainer) -> None:
    history = make_trainer(max_steps=2).train()
    assert history["val_step"] == history["val_loss"] == []


def test_trainer_train_calls_its_hooks_after_steps_and_evaluations(
    make_trainer: MakeTrainer, ragged_pairs: Pairs
) -> None:
    trainer = make_trainer(max_steps=4, eval_every=2)
    called: list[tuple[str, int, float]] = []
    history = trainer.train(
        ragged_pairs[:3],
        after_step=lambda step, metrics: called.append(("step", step, metrics["lr"])),
        after_eval=lambda step, metrics: called.append(("eval", step, metrics["loss"])),
    )
    assert [(what, step) for what, step, _ in called] == [
        *[("step", 0), ("step", 1), ("eval", 1)],
        *[("step", 2), ("step", 3), ("eval", 3)],
    ]
    assert [value for what, _, value in called if what == "eval"] == history["val_loss"]


def test_trainer_leaves_everything_as_it_was_when_the_loss_is_not_finite(
    make_trainer: MakeTrainer,
) -> None:
    values = [0.0, 0.0, math.inf]

    def reference(examples: Sequence[PreferenceExample]) -> mx.array:
        return mx.full((2, len(examples)), values.pop(0)) * mx.array([[1.0], [0.0]])

    trainer = make_trainer(reference=reference)
    trainer.train_step()
    trainer.train_step()

    def everything() -> dict[str, Any]:
        moments = named_arrays(trainer.optimizer.state)
        return {
            **arrays_of(trainer),
            **{f"state.{name}": np.array(a) for name, a in moments.items()},
        }

    before, cursor = everything(), trainer.state()
    with pytest.raises(NonFiniteError, match=r"step 2: .*nothing was applied") as raised:
        trainer.train_step()
    assert raised.value.exit_code == 5
    assert trainer.state() == cursor
    after = everything()
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)


class Steep(nn.Module):
    """Logits that are the roots of its weights: at 0 they are finite, and their slope is not."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight = mx.zeros((64, 64))

    def __call__(self, ids: mx.array) -> mx.array:
        return mx.sqrt(self.weight[ids])


def test_trainer_refuses_an_infinite_gradient_though_the_loss_is_finite(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(model=Steep(), ref_model=Steep())
    with pytest.raises(NonFiniteError, match=r"step 0: loss 0\.693"):
        trainer.train_step()
    assert not trainer.model.weight.any()


def test_trainer_refuses_the_policy_as_its_own_reference(
    make_model: Callable[[], nn.Module], ragged_pairs: Pairs
) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="the policy itself"):
        DPOTrainer(
            model, ref_model=model, examples=ragged_pairs, max_seq_len=32, pad_id=0, beta=0.1,
            batch_size=2, max_steps=1, max_lr=1e-3,
        )  # fmt: skip
    assert model.trainable_parameters()


def test_trainer_clips_the_global_norm(make_trainer: MakeTrainer, ragged_pairs: Pairs) -> None:
    """Scaled by limit / (norm + 1e-6), all tensors alike, and measured before."""
    pairs = ragged_pairs[:4]
    norm = make_trainer().train_step(pairs)["grad_norm"]
    free = movement(make_trainer, pairs)
    assert math.sqrt(sum(float((d.astype(np.float64) ** 2).sum()) for d in free.values())) == (
        pytest.approx(norm, rel=1e-5)
    )
    limit = norm / 3
    clipped = movement(make_trainer, pairs, grad_clip=limit)
    assert_all_close(clipped, {k: d * limit / (norm + 1e-6) for k, d in free.items()})
    assert make_trainer(grad_clip=limit).train_step(pairs)["grad_norm"] == norm


def test_trainer_does_not_clip_below_the_limit(
    make_trainer: MakeTrainer, ragged_pairs: Pairs
) -> None:
    pairs = ragged_pairs[:4]
    norm = make_trainer().train_step(pairs)["grad_norm"]
    free = movement(make_trainer, pairs)
    for name, value in movement(make_trainer, pairs, grad_clip=norm * 1.01).items():
        np.testing.assert_array_equal(value, free[name], err_msg=name)


def test_trainer_adamw_corrects_its_bias(make_trainer: MakeTrainer, ragged_pairs: Pairs) -> None:
    """Corrected, Adam's first step is lr * gradient / |gradient|; uncorrected, 3.16 times that."""
    trainer = make_trainer(max_lr=1e-3)
    before = arrays_of(trainer)
    trainer.train_step(ragged_pairs)
    moved = {name: np.abs(value - before[name]) for name, value in arrays_of(trainer).items()}
    for name, distance in moved.items():
        assert distance.max() == pytest.approx(1e-3, rel=1e-2), name


def test_trainer_decays_every_parameter(make_trainer: MakeTrainer, ragged_pairs: Pairs) -> None:
    """Norm weights too: as PyTorch's AdamW does with all parameters in one group."""
    plain, decayed = make_trainer(), make_trainer(weight_decay=0.5)
    before = arrays_of(plain)
    plain.train_step(ragged_pairs)
    decayed.train_step(ragged_pairs)
    without = arrays_of(plain)
    for name, value in arrays_of(decayed).items():
        expected = without[name] - 1e-2 * 0.5 * before[name]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6, err_msg=name)


def test_trainer_with_cached_log_probs_follows_the_one_with_a_frozen_copy(
    make_trainer: MakeTrainer, ragged_pairs: Pairs
) -> None:
    copy = make_trainer(max_steps=8)

    def score(batch: Sequence[PreferenceExample]) -> mx.array:
        return copy.score(copy.model, batch)

    logprobs = score_in_batches(score, ragged_pairs, batch_size=3)
    cached = make_trainer(max_steps=8, reference=cached_reference(ragged_pairs, logprobs))
    for _ in range(8):
        found, expected = cached.train_step(), copy.train_step()
        # At step 0 every pair is a tie but for rounding, so accuracy says nothing.
        found.pop("accuracy"), expected.pop("accuracy")
        assert found == pytest.approx(expected, rel=1e-3, abs=2e-5)
    assert cached.evaluate(ragged_pairs) == pytest.approx(copy.evaluate(ragged_pairs), abs=2e-5)


def test_trainer_with_cached_log_probs_never_guesses(
    make_trainer: MakeTrainer, ragged_pairs: Pairs
) -> None:
    known = ragged_pairs[:5]
    reference = cached_reference(known, np.zeros((2, 5), dtype=np.float32))
    trainer = make_trainer(examples=known, reference=reference)
    trainer.evaluate(known)
    with pytest.raises(DataError, match="no cached reference log-prob"):
        trainer.evaluate([ragged_pairs[7]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": []}, "no training examples"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"batch_size": -1}, "batch_size"),
        ({"max_seq_len": 1}, "max_seq_len must be at least 2"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"beta": -0.1}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"grad_accumulation": 0}, "grad_accumulation"),
        ({"eval_every": 0}, "eval_every"),
        ({"log_every": 0}, "log_every"),
        ({"ref_model": None}, "exactly one of ref_model and reference"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_trainer_refuses_settings_that_make_no_sense(
    make_trainer: MakeTrainer, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(**changes)


def test_trainer_refuses_two_references(
    make_trainer: MakeTrainer, make_model: Callable[[], nn.Module]
) -> None:
    with pytest.raises(ValueError, match="exactly one of ref_model and reference"):
        make_trainer(ref_model=make_model(), reference=RecordingReference())
