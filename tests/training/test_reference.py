"""The reference is scored as the policy is, also where MLX computes a gradient otherwise."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.reference import as_in_a_step, cached_reference
from mlx_dpo.training.trainer import DPOTrainer
from tests.training import architectures

PAIRS = [PreferenceExample([5, 6, 7, 8], [9, 10], [11, 12, 13]), PreferenceExample([5], [6], [7])]


@pytest.fixture
def fused_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as on a GPU: another kernel where no gradient is wanted, with other last bits."""
    depth = [0]
    attention, value_and_grad = mx.fast.scaled_dot_product_attention, mx.value_and_grad

    def watched(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        def inner(*args: Any, **kwargs: Any) -> Any:
            depth[0] += 1
            try:
                return function(*args, **kwargs)
            finally:
                depth[0] -= 1

        return value_and_grad(inner, *arguments, **options)

    def fused(*args: Any, **options: Any) -> mx.array:
        return attention(*args, **options) * (1 if depth[0] else 1.01)

    monkeypatch.setattr(mx, "value_and_grad", watched)
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", fused)


@pytest.mark.parametrize("reference", ["cached", "copy"])
@pytest.mark.parametrize("path", [PlainPath(16, 0), FastPath(16, 0)], ids=lambda path: path.name)
@pytest.mark.usefixtures("fused_without_gradient")
def test_bfloat16_starts_at_log_2_with_kernels_that_differ_without_a_gradient(
    reference: str, path: ScoringPath
) -> None:
    model, copy = (architectures.make("llama") for _ in range(2))
    for each in (model, copy):
        each.set_dtype(mx.bfloat16)
    options: dict[str, Any] = {"ref_model": copy}
    if reference == "cached":
        logprobs = np.array(as_in_a_step(path)(model, PAIRS))
        options = {"ref_model": None, "reference": cached_reference(PAIRS, logprobs)}
    before = fingerprint(copy)
    trainer = DPOTrainer(
        model,
        examples=PAIRS,
        max_seq_len=16,
        pad_id=0,
        beta=0.1,
        batch_size=2,
        max_steps=2,
        max_lr=1e-6,
        path=path,
        **options,
    )
    start = trainer.check_start()
    assert start["loss"] == np.float32(np.log(2))
    assert start["largest_reward"] == 0
    policy, frozen = trainer.score_pairs(PAIRS)
    assert np.array_equal(policy, frozen), "held-out figures start at log 2 too"
    assert trainer.train_step()["loss"] == np.float32(np.log(2))
    assert fingerprint(copy) == before


def test_log_probs_under_a_gradient_are_the_log_probs() -> None:
    model = architectures.make("llama")
    path = FastPath(16, 0)
    np.testing.assert_allclose(
        np.array(as_in_a_step(path)(model, PAIRS)), np.array(path(model, PAIRS)), rtol=1e-6
    )


@given(st.data())
def test_each_copy_of_a_pair_has_what_it_rounds_to_in_its_own_forward(data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    examples = [PreferenceExample([5], [6 + each], [20]) for each in drawn]
    rows = data.draw(st.permutations(range(len(examples))))
    batches = [rows[start : start + 3] for start in range(0, len(rows), 3)]
    logprobs = np.zeros((2, len(examples)), np.float32)
    for batch in batches:
        # What a forward rounds to follows from all that is in it.
        together = sorted(drawn[row] for row in batch)
        logprobs[:, batch] = [drawn[row] + hash(tuple(together)) % 97 / 97 for row in batch]
    reference = cached_reference(examples, logprobs, batches)
    for batch in batches:
        found = np.array(reference([examples[row] for row in batch]))
        assert np.array_equal(found, logprobs[:, batch])
    assert reference([examples[0]]).shape == (2, 1), "a batch of another epoch has one of them"
