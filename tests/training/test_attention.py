"""Attention with the heads of a group below each other is MLX's, and its gradient too."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.training import attention
from mlx_dpo.training.attention import heads_together

R, K, N, M, D = 2, 2, 5, 9, 4
REAL = mx.arange(M) < mx.array([9, 7])[:, None, None, None]
CAUSAL = mx.arange(M - N, M)[:, None] >= mx.arange(M)
MASKS: dict[str, Any] = {
    "none": None,
    "causal": "causal",
    "one for all rows": CAUSAL,
    "one for each row": CAUSAL & REAL,
    "keys alone": REAL,
    "numbers": mx.random.normal((R, 1, N, M), key=mx.random.key(1)),
    "one for each head": mx.random.normal((1, 6, N, M), key=mx.random.key(2)),
}


def attended(heads: int, dtype: mx.Dtype = mx.float32, **options: Any) -> list[mx.array]:
    """Output and gradients."""
    shapes = [(R, heads, N, D), (R, K, M, D), (R, K, M, D + 2)]
    inputs = [mx.random.normal(shape, dtype, key=mx.random.key(sum(shape))) for shape in shapes]

    def attend(*inputs: mx.array) -> list[mx.array]:
        return [mx.fast.scaled_dot_product_attention(*inputs, scale=0.5, **options)]

    weights = mx.random.normal((R, heads, N, D + 2), dtype, key=mx.random.key(3))
    outputs, gradients = mx.vjp(attend, inputs, [weights])
    return [*outputs, *gradients]


def assert_same(heads: int, dtype: mx.Dtype = mx.float32, **options: Any) -> None:
    expected = attended(heads, dtype, **options)
    with heads_together():
        found = attended(heads, dtype, **options)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        off = 1e-6 if dtype == mx.float32 else 2e-2
        np.testing.assert_allclose(
            np.array(one.astype(mx.float32)), np.array(other.astype(mx.float32)), off, off
        )


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [K, 3 * K])
def test_output_and_gradients_are_mlx_s(heads: int, mask: str) -> None:
    if mask != "one for each head" or heads == 6:
        assert_same(heads, mask=MASKS[mask])


def test_so_they_are_in_bfloat16_and_with_sinks() -> None:
    assert_same(3 * K, mx.bfloat16, mask="causal")
    assert_same(3 * K, mask=CAUSAL, sinks=mx.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))


def test_a_query_that_may_attend_to_nothing_gets_what_mlx_gives_it() -> None:
    (expected, *_) = attended(3 * K, mask=mx.zeros((N, M), mx.bool_))
    with heads_together():
        (found, *_) = attended(3 * K, mask=mx.zeros((N, M), mx.bool_))
    assert mx.allclose(found, expected, 1e-6, 1e-6)


def test_afterwards_mlx_s_own_is_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    own = mx.fast.scaled_dot_product_attention

    def fail() -> None:
        with heads_together():
            outer = mx.fast.scaled_dot_product_attention
            assert outer is not own
            with heads_together():
                assert mx.fast.scaled_dot_product_attention is outer
            assert mx.fast.scaled_dot_product_attention is outer
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert mx.fast.scaled_dot_product_attention is own
    monkeypatch.setattr(attention, "on_gpu", lambda: True)
    with heads_together():
        assert mx.fast.scaled_dot_product_attention is own
