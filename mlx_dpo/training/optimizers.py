"""Optimizers by name, stochastic rounding for bfloat16 weights, and the learning-rate schedule.

State beside 4 bytes of weight a parameter: AdamW 8 bytes, Lion 4, Adafactor a row and a column of
each matrix. It is all that a resumed run needs of an optimizer.

At DPO learning rates an update is far smaller than half a step of bfloat16, and rounding to the
nearest discards it, every time. Rounded up with the probability that its remainder says (Gupta et
al. 2015, arXiv:1502.02551), a weight follows its updates in expectation.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

# Elements updated at a time where each is independent: float32 copies take 16 MiB an array.
_BLOCK = 2**22
_ELEMENTWISE = (optim.AdamW, optim.Lion)
_BFLOAT16_BITS = 0xFFFF0000  # of a float32: sign, exponent and seven of its digits, a bfloat16


def make_optimizer(
    name: str, *, learning_rate: float, weight_decay: float, compiled: bool = False
) -> optim.Optimizer:
    """An optimizer whose learning rate the trainer sets at each step.

    Args:
        name: ``adamw`` (betas 0.9 and 0.999, eps 1e-8), ``lion`` (betas 0.9 and 0.99; its step is
            a sign, so it needs a learning rate three to ten times lower) or ``adafactor`` (no
            momentum, the learning rate as it is given).
        learning_rate: Of the first step.
        weight_decay: Decoupled decay, on every parameter.
        compiled: Whether AdamW is one kernel a tensor: for GPUs, where launches cost.

    Raises:
        ValueError: If there is no such optimizer.
    """
    if name == "adamw":
        # MLX's AdamW leaves bias correction off by default, which differs from PyTorch at step 1.
        kind = CompiledAdamW if compiled else optim.AdamW
        return kind(
            learning_rate=learning_rate,
            betas=[0.9, 0.999],
            eps=1e-8,
            weight_decay=weight_decay,
            bias_correction=True,
        )
    if name == "lion":
        return optim.Lion(learning_rate=learning_rate, weight_decay=weight_decay)
    if name == "adafactor":
        # By itself it would scale the rate by each tensor's size and by the step.
        return optim.Adafactor(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            scale_parameter=False,
            relative_step=False,
        )
    raise ValueError(f"no optimizer {name!r}")


class CompiledAdamW(optim.AdamW):
    """AdamW whose update of a tensor is one compiled kernel instead of a dozen.

    Not compiled as a whole: all updates together would be alive at once. All tensors of a shape
    share a trace. Equal to `mlx.optimizers.AdamW` with bias correction but for rounding.
    """

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
        """The updated parameter; moments are replaced in `state`."""
        b1, b2 = self.betas
        parameter, state["m"], state["v"] = _compiled_adamw(
            gradient,
            parameter,
            state["m"],
            state["v"],
            self.learning_rate,
            self.step,
            b1=b1,
            b2=b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
        return parameter


@mx.compile
def _compiled_adamw(
    gradient: mx.array,
    parameter: mx.array,
    m: mx.array,
    v: mx.array,
    learning_rate: mx.array,
    step: mx.array,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> tuple[mx.array, mx.array, mx.array]:
    lr = learning_rate.astype(gradient.dtype)
    m = b1 * m + (1 - b1) * gradient
    v = b2 * v + (1 - b2) * mx.square(gradient)
    numerator = lr / (1 - b1**step) * m
    denominator = mx.sqrt(v) * mx.rsqrt(1 - b2**step) + eps
    return parameter * (1 - lr * weight_decay) - numerator / denominator, m, v


def stochastic_round(values: mx.array, key: mx.array) -> mx.array:
    """Round to one of the two bfloat16 neighbours, the nearer one more often.

    Args:
        values: float32, any shape. A number that bfloat16 holds stays itself, NaN stays NaN.
        key: Of `mx.random`; the same key rounds the same way.

    Returns:
        bfloat16 of the same shape, whose expectation is `values`.

    Raises:
        ValueError: If `values` is not float32.
    """
    if values.dtype != mx.float32:
        raise ValueError(f"expected float32 to round, got {values.dtype}")
    noise = mx.random.randint(0, 2**16, values.shape, dtype=mx.uint32, key=key)
    # Sign and magnitude are separate in a float: adding to its bits moves it away from zero, by
    # one bfloat16 step with the probability that the bits to be cut off say.
    rounded = ((values.view(mx.uint32) + noise) & _BFLOAT16_BITS).view(mx.float32)
    return mx.where(mx.isnan(values), values, rounded).astype(mx.bfloat16)


class StochasticRounding(optim.Optimizer):
    """Another optimizer, computing in float32 and storing bfloat16 by `stochastic_round`.

    Weights that are bfloat16 stay so, and so does the state kept for them; all others are left to
    the optimizer. The noise follows from the seed and the optimizer's step: whoever restores the
    state goes on bit by bit.

    Args:
        inner: Computes the updates; its state is this one's state.
        seed: Of the noise, 0 to 2**32 - 1.
    """

    def __init__(self, inner: optim.Optimizer, *, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # MLX publishes no types here
        self._inner = inner
        self._seed = seed
        self._key = mx.random.key(seed)

    @property
    def state(self) -> Any:
        """The inner optimizer's state, bfloat16 for weights that are."""
        return self._inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self._inner.state = state
        self._initialized = False

    def init(self, parameters: Any) -> None:
        """Make the state of parameters that have none."""
        self._inner.init(parameters)
        self._initialized = True

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """The updated parameters; see `mlx.optimizers.Optimizer`."""
        self._key = mx.random.key((self._seed << 32) | int(self._inner.step))
        return super().apply_gradients(gradients, parameters)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
        """The updated parameter, of the dtype it had."""
        if parameter.dtype != mx.bfloat16:
            untouched: mx.array = self._inner.apply_single(gradient, parameter, state)
            return untouched
        if parameter.size > _BLOCK and isinstance(self._inner, _ELEMENTWISE):
            return self._apply_in_blocks(gradient, parameter, state)
        return self._apply(gradient, parameter, state)

    def _apply_in_blocks(self, gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
        """Some rows after the others: the float32 copies of all would be alive at once."""
        names = sorted(state)
        rows = max(1, _BLOCK * len(parameter) // parameter.size)
        blocks: list[list[mx.array]] = []
        for start in range(0, len(parameter), rows):
            whole = [gradient, parameter, *(state[name] for name in names)]
            parts = [array[start : start + rows] for array in whole]
            if blocks:
                parts = mx.depends(parts, blocks[-1])
            moments = dict(zip(names, parts[2:], strict=True))
            updated = self._apply(parts[0], parts[1], moments)
            blocks.append([updated, *(moments[name] for name in names)])
        updated, *joined = (mx.concatenate(list(part)) for part in zip(*blocks, strict=True))
        state.update(zip(names, joined, strict=True))
        return updated

    def _apply(self, gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
        wide = {name: value.astype(mx.float32) for name, value in state.items()}
        updated = self._inner.apply_single(
            gradient.astype(mx.float32), parameter.astype(mx.float32), wide
        )
        for name in sorted(wide):  # a file gives them back in any order, and noise is drawn in turn
            state[name] = self._round(wide[name])
        return self._round(updated)

    def _round(self, values: mx.array) -> mx.array:
        self._key, key = mx.random.split(self._key)
        return stochastic_round(values, key)


def warmup_cosine(
    step: int, *, max_lr: float, min_lr: float, warmup_steps: int, max_steps: int
) -> float:
    """Linear warm-up to `max_lr`, then a cosine down to `min_lr`, which holds from `max_steps` on.

    Args:
        step: Counted from 0; already the first step has a rate above 0.
        max_lr: Rate at the end of warm-up.
        min_lr: Rate at the end of the run.
        warmup_steps: Length of the warm-up.
        max_steps: Length of the run.
    """
    if step >= max_steps:
        return min_lr
    if step < warmup_steps:
        return max_lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return min_lr + 0.5 * (max_lr - min_lr) * (1 + math.cos(math.pi * progress))
