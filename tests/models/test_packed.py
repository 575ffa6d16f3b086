"""Packed layers multiplied by what they stand for: MLX's own product, without its cost on a CPU."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.switch_layers import SwitchLinear

from mlx_dpo.models import packed
from mlx_dpo.models.packed import dense, multiply_dense, num_inputs

AFFINE = [(bits, group, "affine") for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
PACKINGS = [*AFFINE, (4, 32, "mxfp4"), (8, 32, "mxfp8"), (4, 16, "nvfp4")]
INPUTS, OUTPUTS = 256, 96


def both(layer: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A packed layer as MLX has it, and one on the same arrays that unpacks for each product."""
    mx.eval(layer.parameters())
    own = nn.Sequential(layer)
    twin = type(layer).__new__(type(layer))
    twin.__dict__.update(layer.__dict__)
    dict.update(twin, layer)
    multiply_dense(nn.Sequential(twin))
    assert type(twin) is not type(layer)
    return own.layers[0], twin


def gradient(layer: Any, x: mx.array, *rest: Any, name: str = "__call__") -> mx.array:
    """By `x`, of a sum in which each output counts differently."""

    def value(x: mx.array) -> mx.array:
        y = getattr(type(layer), name)(layer, x, *rest)
        total: mx.array = (y * mx.sin(mx.arange(y.size).reshape(y.shape))).sum()
        return total

    result: mx.array = mx.grad(value)(x)
    return result


def assert_close(found: mx.array, expected: mx.array) -> None:
    assert found.shape == expected.shape
    assert float(mx.abs(found - expected).max()) <= 2e-5 * float(mx.abs(expected).max())


@pytest.mark.parametrize(("bits", "group", "mode"), PACKINGS)
def test_product_and_gradient_of_every_packing_are_mlx_own(
    bits: int, group: int, mode: str
) -> None:
    mx.random.seed(0)
    own, unpacked = both(nn.Linear(INPUTS, OUTPUTS).to_quantized(group, bits, mode=mode))
    x = mx.random.normal((2, 5, INPUTS))
    assert num_inputs(own) == INPUTS
    assert_close(unpacked(x), own(x))
    assert_close(gradient(unpacked, x), gradient(own, x))
    assert_close(x @ dense(own).T + own.bias, own(x))


@pytest.mark.parametrize(("bits", "group", "mode"), [(4, 64, "affine"), (4, 32, "mxfp4")])
def test_a_packed_embedding_that_is_the_head_too(bits: int, group: int, mode: str) -> None:
    mx.random.seed(0)
    own, unpacked = both(nn.Embedding(OUTPUTS, INPUTS).to_quantized(group, bits, mode=mode))
    x = mx.random.normal((5, INPUTS))
    ids = mx.array([3, 1, 3])
    assert mx.array_equal(unpacked(ids), own(ids))
    assert_close(unpacked.as_linear(x), own.as_linear(x))
    assert_close(gradient(unpacked, x, name="as_linear"), gradient(own, x, name="as_linear"))


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(("bits", "group", "mode"), [(4, 64, "affine"), (4, 32, "mxfp4")])
def test_packed_experts(bits: int, group: int, mode: str, in_order: bool) -> None:
    mx.random.seed(0)
    own, unpacked = both(SwitchLinear(INPUTS, OUTPUTS, 4).to_quantized(group, bits, mode=mode))
    chosen = mx.array([0, 0, 1, 3]) if in_order else mx.array([[0, 1], [2, 3], [1, 1]])
    x = mx.random.normal((4, 1, INPUTS) if in_order else (3, 1, 1, INPUTS))
    assert_close(unpacked(x, chosen, in_order), own(x, chosen, in_order))
    assert_close(gradient(unpacked, x, chosen, in_order), gradient(own, x, chosen, in_order))


def test_half_precision_is_multiplied_in_float32() -> None:
    mx.random.seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS)
    layer.set_dtype(mx.bfloat16)
    _, unpacked = both(layer.to_quantized(64, 4))
    x = mx.random.normal((3, INPUTS)).astype(mx.bfloat16)
    exact = x.astype(mx.float32) @ dense(unpacked).T + unpacked.bias
    assert unpacked(x).dtype == mx.bfloat16
    rounding = 2**-8 * mx.abs(exact).max()
    assert bool((mx.abs(unpacked(x) - exact).max() <= 2 * rounding).item())


def test_a_packing_that_unpacks_to_something_else_is_left_to_mlx(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = nn.Linear(INPUTS, OUTPUTS).to_quantized(64, 4)
    expected = layer(mx.ones((1, INPUTS)))
    right = packed.dense
    monkeypatch.setattr(packed, "dense", lambda module: 1.5 * right(module))
    multiply_dense(nn.Sequential(layer))
    assert type(layer) is nn.QuantizedLinear
    assert mx.array_equal(layer(mx.ones((1, INPUTS))), expected)
