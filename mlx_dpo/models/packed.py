"""Quantised layers, called packed: what they hold as a dense matrix, and products with them.

MLX multiplies by packed weights directly. On a GPU that is fast and sums in float32. On a CPU it is
a loop of 2 GFLOP/s which sums bfloat16 in bfloat16; there the weights are unpacked for each product
and thrown away after it, and the product is one of dense float32 matrices.
"""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.device import on_gpu
from mlx_dpo.models.parameters import named_arrays

# A product with packed weights may sum in half precision, and so may its check.
_LARGEST_DIFFERENCE = 0.05  # relative, of a row


def is_packed(module: Any) -> bool:
    """Whether a module holds quantised weights."""
    return isinstance(module, nn.Module) and "scales" in module and hasattr(module, "bits")


def num_inputs(module: Any) -> int:
    """Columns of a layer's matrix: the size of what it takes, or of what an embedding gives."""
    columns = int(module.weight.shape[-1])
    return columns * 32 // module.bits if is_packed(module) else columns


def num_parameters(model: nn.Module) -> int:
    """Weights of a model; a packed one counts once, whatever it is packed into."""
    total = sum(array.size for array in named_arrays(model.parameters()).values())
    for module in model.modules():
        if is_packed(module):
            packed = [module.get(name) for name in ("weight", "scales", "biases")]
            total -= sum(array.size for array in packed if array is not None)
            total += module.weight.size // module.weight.shape[-1] * num_inputs(module)
    return total


def packed_bits(model: nn.Module) -> list[int]:
    """Bits of a model's packed weights, that of most of them first; empty where none is packed."""
    counts: dict[int, int] = {}
    for module in model.modules():
        if is_packed(module):
            size = module.weight.size * 32 // module.bits
            counts[module.bits] = counts.get(module.bits, 0) + size
    return sorted(counts, key=lambda bits: -counts[bits])


def dense(module: Any, dtype: mx.Dtype = mx.float32) -> mx.array:
    """The matrix that a layer, an embedding or a layer of experts stands for, in some dtype."""
    if not is_packed(module):
        matrix: mx.array = module.weight
        return matrix.astype(dtype)
    return mx.dequantize(
        module.weight,
        module.scales,
        module.get("biases"),
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    ).astype(dtype)


def multiply_dense(model: nn.Module) -> None:
    """On a CPU, make packed layers of a model unpack their weights for each product.

    One row of the first layer of each packing is multiplied both ways before. A packing whose
    results differ is left to MLX's own product.
    """
    if on_gpu():
        return
    agrees: dict[tuple[Any, ...], bool] = {}
    for module in model.modules():
        base: Any = type(module)
        if not is_packed(module) or (kind := _dense_kind(base)) is None:
            continue
        if module.get("global_scale") is not None:
            continue  # one more factor, which `dense` does not know
        packing = (module.bits, module.group_size, module.mode, type(module))
        if packing not in agrees:
            agrees[packing] = _agrees(module, kind)
        if agrees[packing]:
            module.__class__ = kind


def casting_again(module: Any) -> Any:
    """A copy of a packed layer that casts its scales anew for each product and each gradient.

    MLX casts scales to the dtype of what they are multiplied with; kept for the gradient, those of
    all layers would be alive at once.
    """
    copied = copy.copy(module)
    base: Any = type(module)
    copied.__class__ = _casting_kind(base)
    return copied


@cache
def _casting_kind(base: Any) -> type:
    if base.__dict__.get("unpacks"):  # and keeps nothing
        return cast("type", base)

    def call(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        return mx.checkpoint(lambda x: base.__call__(self, x, *args, **kwargs))(x)

    return type(base.__name__, (base,), {"__call__": call})


def _product(x: mx.array, module: Any, multiply: Callable[..., mx.array]) -> mx.array:
    """``multiply(x, matrix)`` in float32, whose gradient by `x` unpacks the matrix once more.

    Kept for the gradient, the dense matrices of all layers would be alive at once.
    """

    @mx.custom_function
    def run(x: mx.array) -> mx.array:
        return multiply(x.astype(mx.float32), dense(module)).astype(x.dtype)

    def back(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        matrix = dense(module)
        zeros = mx.zeros(x.shape)  # the product is linear: any point will do
        gradients: Any = mx.vjp(
            lambda point: multiply(point, matrix), [zeros], [cotangent.astype(mx.float32)]
        )[1]
        result: mx.array = gradients[0].astype(x.dtype)
        return result

    function: Any = run
    function.vjp(back)
    result: mx.array = function(x)
    return result


@cache
def _dense_kind(base: type) -> type | None:
    """A subclass of a packed layer's class that multiplies by dense weights; None for others."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear

    if base.__dict__.get("unpacks"):
        return None

    def linear(self: Any, x: mx.array) -> mx.array:
        y = _product(x, self, lambda x, matrix: x @ matrix.T)
        return y + self.bias if "bias" in self else y

    def as_linear(self: Any, x: mx.array) -> mx.array:
        return _product(x, self, lambda x, matrix: x @ matrix.T)

    def experts(
        self: Any, x: mx.array, indices: mx.array, sorted_indices: bool = False
    ) -> mx.array:
        def multiply(x: mx.array, matrices: mx.array) -> mx.array:
            return mx.gather_mm(
                x,
                matrices.swapaxes(-1, -2),
                rhs_indices=indices,
                sorted_indices=sorted_indices,
            )

        y = _product(x, self, multiply)
        return y + mx.expand_dims(self.bias[indices], -2) if "bias" in self else y

    for known, name, method in (
        (nn.QuantizedLinear, "__call__", linear),
        (nn.QuantizedEmbedding, "as_linear", as_linear),
        (QuantizedSwitchLinear, "__call__", experts),
    ):
        if issubclass(base, known):
            return type(base.__name__, (base,), {name: method, "unpacks": True})
    return None


def _agrees(module: Any, kind: type) -> bool:
    """Whether both products of a layer agree, on a row of ones."""
    name = "as_linear" if isinstance(module, nn.QuantizedEmbedding) else "__call__"
    row = mx.ones((1, num_inputs(module)))
    arguments: tuple[mx.array, ...] = (row,)
    if module.weight.ndim == 3:
        arguments = (row[None, None], mx.zeros((1, 1), mx.int32))
    expected, found = (getattr(each, name)(module, *arguments) for each in (type(module), kind))
    largest = mx.abs(expected - found).max() / (mx.abs(expected).max() + 1e-6)
    return bool((largest <= _LARGEST_DIFFERENCE).item())
