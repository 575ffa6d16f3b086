"""The classic DPO bugs, each built on purpose.

Right numbers alone prove little: at step 0 every masking bug gives log 2, and some cancel in the
loss for ever. So each bug is built here, outside the library, and must give the number PyTorch
found for it; the library must give the right one; and per-sequence log-probs must tell the two
apart.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_dpo.preferences.collate import pad_and_collate_pref
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.logprobs import pair_logprobs, sequence_logprob
from mlx_dpo.training.loss import dpo_loss
from mlx_dpo.training.reference import score_in_batches
from mlx_dpo.training.trainer import DPOTrainer
from tests import oracle

NUM_PAIRS = 8

Examples = list[PreferenceExample]
# Log-probs (2, B) of pairs under a model, right or wrong.
Score = Callable[[nn.Module, Examples], mx.array]

both_models = pytest.mark.parametrize("name", oracle.MODELS)


@cache
def policy_and_reference(name: str) -> tuple[nn.Module, nn.Module]:
    return oracle.trained_policy(name), oracle.load_model(name)


def first_pairs(name: str) -> Examples:
    return oracle.pairs(name)[:NUM_PAIRS]


def pitfall(name: str, title: str) -> dict[str, float]:
    """The row of pitfalls.json whose title begins so."""
    rows = oracle.read("pitfalls.json")[name]
    (found,) = [row for full_title, row in rows.items() if full_title.startswith(title)]
    return dict(found)


@cache
def scored(name: str, score: Score) -> tuple[mx.array, mx.array]:
    """Log-probs of the first pairs by policy and reference."""
    policy, reference = (score(model, first_pairs(name)) for model in policy_and_reference(name))
    mx.eval(policy, reference)
    return policy, reference


def assert_gives(name: str, score: Score, row: dict[str, float]) -> None:
    """A way of scoring gives the loss, the margin and the largest log-prob of a pitfall row."""
    policy, reference = scored(name, score)
    loss, metrics = dpo_loss(*policy, *reference, beta=oracle.BETA)
    assert float(loss) == pytest.approx(row["loss"], abs=2e-5)
    assert float(metrics["reward_margin"]) == pytest.approx(row["margin"], abs=1e-4)
    assert oracle.largest(policy) == pytest.approx(row["max_abs_logp"], abs=5e-4)


def longest(examples: Examples) -> int:
    return max(len(e.prompt_ids) + max(map(len, e[1:])) for e in examples)


def ours(model: nn.Module, examples: Examples) -> mx.array:
    return pair_logprobs(model, examples, max_seq_len=oracle.MAX_SEQ_LEN, pad_id=oracle.PAD_ID)


def mean_of_tokens(model: nn.Module, examples: Examples) -> mx.array:
    lengths = [[len(e.chosen_ids) for e in examples], [len(e.rejected_ids) for e in examples]]
    return ours(model, examples) / mx.array(lengths)


def without_eos(model: nn.Module, examples: Examples) -> mx.array:
    cut = [PreferenceExample(p, chosen[:-1], rejected[:-1]) for p, chosen, rejected in examples]
    return ours(model, cut)


def masked_by(mask_of: Callable[[Any, Any], Any]) -> Score:
    """A score with its own mask: `mask_of(position in the response, tokens left)` of each target.

    Right would be ``position >= 0`` and ``left > 0``.
    """

    def score(model: nn.Module, examples: Examples) -> mx.array:
        width = longest(examples)
        cx, cy, _, rx, ry, _ = pad_and_collate_pref(
            examples, max_seq_len=width, pad_id=oracle.PAD_ID
        )
        begin = np.array([[len(e.prompt_ids)] for e in examples])
        targets = np.arange(1, width)[None]
        sides = []
        for side, (x, y) in enumerate([(cx, cy), (rx, ry)], start=1):
            end = begin + np.array([[len(e[side])] for e in examples])
            mask = mx.array(mask_of(targets - begin, end - targets).astype(np.float32))
            sides.append(sequence_logprob(model(x), y, mask))
        return mx.stack(sides)

    return score


def padded_left(model: nn.Module, examples: Examples) -> mx.array:
    """Pads in front, without a mask to hide them from the model."""
    width = longest(examples)
    sides = []
    for side in (1, 2):
        rows = [[*e.prompt_ids, *e[side]] for e in examples]
        ids = mx.array([[oracle.PAD_ID] * (width - len(row)) + row for row in rows])
        begin = np.array([[width - len(e[side])] for e in examples])
        mask = mx.array((np.arange(1, width)[None] >= begin).astype(np.float32))
        sides.append(sequence_logprob(model(ids[:, :-1]), ids[:, 1:], mask))
    return mx.stack(sides)


BUGS: dict[str, Score] = {
    "mask_not_shifted": masked_by(lambda position, left: (position >= 1) & (left > -1)),
    "mask_shifted_twice": masked_by(lambda position, left: (position >= -1) & (left > 1)),
    "prompt_scored_too": masked_by(lambda position, left: left > 0),
    "whole-sequence mask": masked_by(lambda position, left: left > -1),
    "mean_instead_of_sum": mean_of_tokens,
    "eos_missing": without_eos,
    "left_pad_without_attention_mask": padded_left,
}


@both_models
def test_library_gives_the_right_number(name: str) -> None:
    assert_gives(name, ours, pitfall(name, "correct"))


@both_models
def test_padding_on_the_right_needs_no_attention_mask(name: str) -> None:
    assert_gives(name, ours, pitfall(name, "right_pad_without_attention_mask"))


@both_models
def test_right_mask_built_by_hand_gives_the_right_number(name: str) -> None:
    """So that the bugs below differ from the truth by their mask alone."""
    right = masked_by(lambda position, left: (position >= 0) & (left > 0))
    assert_gives(name, right, pitfall(name, "correct"))


@both_models
@pytest.mark.parametrize("title", BUGS)
def test_bug_gives_the_number_pytorch_found_for_it(name: str, title: str) -> None:
    assert_gives(name, BUGS[title], pitfall(name, title))


@both_models
@pytest.mark.parametrize("title", BUGS)
def test_log_probs_tell_the_bug_from_the_truth(name: str, title: str) -> None:
    """A scored prompt moves the loss by 2e-6, but the log-probs by hundreds."""
    assert oracle.largest(scored(name, BUGS[title])[0] - scored(name, ours)[0]) > 1


@both_models
def test_scored_prompt_cancels_in_the_loss(name: str) -> None:
    """Why a loss alone can't be trusted."""
    off = pitfall(name, "prompt_scored_too")["loss"] - pitfall(name, "correct")["loss"]
    assert 0 < abs(off) < 1e-5


@both_models
def test_log_softmax_and_sum_run_in_float32_for_bfloat16_models(name: str) -> None:
    """bfloat16 has 8 bits: a sum of hundreds of nats loses more than a nat."""
    policy = oracle.trained_policy(name)
    policy.set_dtype(mx.bfloat16)
    cx, cy, cm, *_ = pad_and_collate_pref(
        first_pairs(name), max_seq_len=longest(first_pairs(name)), pad_id=oracle.PAD_ID
    )
    logits = policy(cx)
    assert logits.dtype == mx.bfloat16
    exact = sequence_logprob(logits.astype(mx.float32), cy, cm)
    found = sequence_logprob(logits, cy, cm)
    picked = mx.take_along_axis(nn.log_softmax(logits), cy[..., None], axis=-1).squeeze(-1)
    buggy = mx.zeros(NUM_PAIRS, dtype=mx.bfloat16)
    for column in range(cy.shape[1]):
        buggy = buggy + picked[:, column] * cm[:, column].astype(mx.bfloat16)
    assert mx.array_equal(found, exact)
    assert oracle.largest(buggy.astype(mx.float32) - exact) > 0.5


@both_models
def test_policy_in_another_dtype_than_the_reference_does_not_start_at_log_2(name: str) -> None:
    """Why both load as float32."""
    half, reference = oracle.load_model(name), oracle.load_model(name)
    half.set_dtype(mx.bfloat16)
    policy, frozen = (ours(model, first_pairs(name)) for model in (half, reference))
    loss, _ = dpo_loss(*policy, *frozen, beta=oracle.BETA)
    assert abs(float(loss) - math.log(2)) > 1e-4


@both_models
def test_reference_scored_row_by_row_moves_step_0_by_rounding_alone(name: str) -> None:
    """Other shapes, other last bits: why step 0 is checked to a tolerance with cached log-probs."""
    model = policy_and_reference(name)[1]
    alone = mx.array(
        score_in_batches(lambda batch: ours(model, list(batch)), first_pairs(name), batch_size=1)
    )
    together = ours(model, first_pairs(name))
    loss, metrics = dpo_loss(*together, *alone, beta=oracle.BETA)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    assert abs(float(metrics["reward_margin"])) < 1e-5


class Dropping(nn.Module):
    """A language model with dropout on its logits."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embed = nn.Embedding(8, 8)
        self.dropout = nn.Dropout(0.5)

    def __call__(self, ids: mx.array) -> mx.array:
        logits: mx.array = self.dropout(self.embed.as_linear(self.embed(ids)))
        return logits


def test_trainer_switches_dropout_off() -> None:
    """With dropout in the policy alone PyTorch starts anywhere between 0.57 and 0.98."""
    mx.random.seed(0)
    policy, reference = Dropping().train(), Dropping().train()
    reference.update(policy.parameters())
    pair = PreferenceExample([1, 2], [3, 4], [5])
    assert not mx.array_equal(ours(policy, [pair]), ours(reference, [pair]))
    trainer = DPOTrainer(
        policy,
        ref_model=reference,
        examples=[pair],
        max_seq_len=8,
        pad_id=0,
        beta=oracle.BETA,
        batch_size=1,
        max_steps=1,
        max_lr=0.1,
    )
    assert trainer.train_step()["loss"] == np.float32(math.log(2))
