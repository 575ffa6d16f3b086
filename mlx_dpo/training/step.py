"""One optimizer step: score, loss, gradient in parts, reduce, check, clip, update.

A gradient is a dict of arrays by parameter name. It is evaluated layer by layer, in the order in
which layers become known, and a layer leaves the dict when it is used: its gradient is freed before
the next one's exists.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.errors import NonFiniteError
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.models.parts import by_layer
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.layout import Work
from mlx_dpo.training.loss import PAIR_METRICS, Metrics, add_weighted, dpo_loss
from mlx_dpo.training.paths import ScoringPath
from mlx_dpo.training.reference import Reference

PHASES = ("data", "reference", "forward_backward", "update")

Batch = Sequence[PreferenceExample]
Gradient = dict[str, mx.array]


class Runtime:
    """Evaluates what a step asks for. The memory plan puts a recorder in its place."""

    def evaluate(self, *trees: Any) -> None:
        """Compute the arrays of some trees."""
        mx.eval(*trees)

    def numbers(self, scalars: dict[str, mx.array]) -> dict[str, float]:
        """Values of arrays of one element."""
        return {name: float(scalar) for name, scalar in scalars.items()}

    def values(self, array: mx.array) -> npt.NDArray[np.float32]:
        """Values of a float32 array."""
        return np.array(array)


class Phases:
    """Times the phases of a step: called as ``with phases("update"):``.

    Attributes:
        seconds: Of the last step, by phase: ``data`` (fetching the pairs), ``reference``,
            ``forward_backward``, ``update`` (gradient norm included).
        around: Entered around each phase, by its name.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.around: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()

    def reset(self) -> None:
        """Begin a step."""
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is inside; entered again, seconds add up."""
        start = time.perf_counter()
        with self.around(name):
            yield
        self.seconds[name] += time.perf_counter() - start


class Step:
    """The stages of a step, in the order that its settings ask for.

    A whole step makes the full gradient, batch by batch, then measures, clips and applies it. A
    fused step, of one batch and without clipping, updates each layer as soon as its gradient is
    there: the full gradient never exists.

    Args:
        model: The policy; only its trainable parameters change.
        optimizer: Its state is made for them.
        path: How log-probs are computed.
        reference: ``reference(batch) -> float32 (2, B)``.
        beta: Strength of the pull towards the reference, > 0.
        batch_size: Pairs per forward and backward pass.
        grad_clip: Largest global L2 norm of the gradient; None for no clipping.
        fused: Whether a step of one batch is fused.
        before_batch: Called before each batch. It may raise: nothing has been applied then.
        reduce: Sums a gradient over machines, before it is checked and clipped; by default there
            is one machine.
        runtime: Evaluates.

    Attributes:
        phases: Seconds of the last step, by phase.
        work: Tokens that the last step computed.
        num_pairs: Pairs of the last step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        path: ScoringPath,
        reference: Reference,
        *,
        beta: float,
        batch_size: int,
        grad_clip: float | None = None,
        fused: bool = False,
        before_batch: Callable[[], None] = lambda: None,
        reduce: Callable[[Gradient], Gradient] = lambda gradient: gradient,
        runtime: Runtime | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.path, self.reference = path, reference
        self.beta, self.batch_size = beta, batch_size
        self.grad_clip, self.fused = grad_clip, fused
        self.before_batch, self.reduce = before_batch, reduce
        self.runtime = runtime or Runtime()
        self.phases, self.work, self.num_pairs = Phases(), Work(0, 0, 0), 0
        self._value_and_grad = nn.value_and_grad(model, self._loss)

    def take(self, examples: Batch, *, number: int, lr: float) -> Metrics:
        """Update the policy once.

        Args:
            examples: The pairs of the step, split into batches of `batch_size`.
            number: Of the step, counted from 0.
            lr: Its learning rate.

        Returns:
            ``loss lr grad_norm chosen_reward rejected_reward reward_margin accuracy``, of the
            weights before the update. ``grad_norm`` is measured before clipping.

        Raises:
            NonFiniteError: If the loss or the gradient norm is not finite. Weights and optimizer
                are as they were; a fused update does not wait for the norm, and where only that is
                not finite weights and optimizer are lost.
        """
        self.work, self.num_pairs = Work(0, 0, 0), len(examples)
        take = self._fused if self._is_fused(examples) else self._whole
        metrics, grad_norm = take(examples, number, lr)
        return {"loss": metrics.pop("loss"), "lr": lr, "grad_norm": grad_norm, **metrics}

    def measure(self, examples: Batch) -> tuple[float, float]:
        """Loss and gradient norm of a step with these pairs, which is not taken."""
        if not self._is_fused(examples):
            metrics, grads = self._accumulate(examples)
            return metrics["loss"], self._norm(grads)
        loss, _, grads = self._gradient(examples, self.reference(examples))
        value = self.runtime.numbers({"loss": loss})["loss"]
        return value, _root_of_sum(map(self._sum_of_squares, self._evaluated_layers(grads)))

    def _is_fused(self, examples: Batch) -> bool:
        return self.fused and len(examples) <= self.batch_size

    def _whole(self, examples: Batch, number: int, lr: float) -> tuple[Metrics, float]:
        """Gradient first, and an update once its norm is known."""
        metrics, grads = self._accumulate(examples)
        with self.phases("update"):
            grad_norm = self._norm(grads)
        check_finite(number, metrics["loss"], grad_norm)
        if self.grad_clip is not None and grad_norm > self.grad_clip:
            grads = clipped(grads, grad_norm, self.grad_clip)
        with self.phases("update"):
            self.optimizer.learning_rate = lr
            for _ in self._updated_layers(grads):
                pass  # a layer is updated when the next one is asked for
        return metrics, grad_norm

    def _fused(self, examples: Batch, number: int, lr: float) -> tuple[Metrics, float]:
        """Each layer updated as soon as its gradient is there, which is freed at once."""
        reference = self._reference_of(examples)
        with self.phases("forward_backward"):
            loss, scalars, grads = self._gradient(examples, reference)
            self.runtime.evaluate(loss, scalars)
            metrics = self.runtime.numbers({"loss": loss, **scalars})
            check_finite(number, metrics["loss"])
            self.optimizer.learning_rate = lr
            grad_norm = _root_of_sum(map(self._sum_of_squares, self._updated_layers(grads)))
        check_finite(number, metrics["loss"], grad_norm, applied=True)
        return metrics, grad_norm

    def _accumulate(self, examples: Batch) -> tuple[Metrics, Gradient]:
        """Metrics and gradient of the mean over all pairs, one batch in memory at a time."""
        metrics, grads = dict.fromkeys(PAIR_METRICS, 0.0), Gradient()
        for start in range(0, len(examples), self.batch_size):
            batch = examples[start : start + self.batch_size]
            # By pairs, not by batches: a smaller last batch must not count for more.
            weight = len(batch) / len(examples)
            reference = self._reference_of(batch)
            with self.phases("forward_backward"):
                loss, scalars, part = self._gradient(batch, reference)
                grads = added(grads, part, weight)
                del part  # each layer's goes into the sum, and is not kept beside it
                self.runtime.evaluate(loss, scalars)
                for _ in self._evaluated_layers(dict(grads)):
                    pass
            add_weighted(metrics, self.runtime.numbers({"loss": loss, **scalars}), weight)
        return metrics, in_dtype_of(self.model, self.reduce(grads))

    def _reference_of(self, batch: Batch) -> mx.array:
        """Reference log-probs of a batch, which begins with them."""
        self.before_batch()
        self.work += self.path.work(batch)
        with self.phases("reference"):
            reference = self.reference(batch)
            self.runtime.evaluate(reference)
        return reference

    def _gradient(
        self, batch: Batch, reference: mx.array
    ) -> tuple[mx.array, dict[str, mx.array], Gradient]:
        """Loss, metrics and gradient of a batch, unevaluated."""
        (loss, metrics), grads = self._value_and_grad(batch, reference)
        # In the tree's order: the noise of stochastic rounding is drawn tensor by tensor.
        return loss, metrics, dict(tree_flatten(grads))

    def _loss(self, batch: Batch, reference: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        policy = self.path(self.model, batch)
        return dpo_loss(policy[0], policy[1], reference[0], reference[1], beta=self.beta)

    def _evaluated_layers(self, grads: Gradient) -> Iterator[Gradient]:
        return evaluated_layers(self.model, grads, self.runtime)

    def _updated_layers(self, grads: Gradient) -> Iterator[Gradient]:
        """Gradients of each layer, evaluated; the layer is updated when the next one is asked for.

        `grads` is emptied.
        """
        self.optimizer.update(self.model, tree_unflatten(list(grads.items())))
        for layer in self._evaluated_layers(grads):
            yield layer
            self._evaluate_update(layer)
        self.runtime.evaluate(self.model.parameters(), self.optimizer.state)

    def _evaluate_update(self, layer: Gradient) -> None:
        """Evaluate the updates that wait for a layer's gradients, which are then freed.

        One kind of moment after the other and the weights last: evaluated together, the products of
        all would be alive at once. `layer` is emptied.
        """
        kinds: dict[str, list[mx.array]] = {}
        for name, moment in named_arrays(self.optimizer.state).items():
            parameter, _, kind = name.rpartition(".")
            if parameter in layer:
                kinds.setdefault(kind, []).append(moment)
        names = list(layer)
        layer.clear()
        for moments in kinds.values():
            self.runtime.evaluate(moments)
        parameters = named_arrays(self.model.trainable_parameters())
        self.runtime.evaluate([parameters[name] for name in names])

    def _norm(self, grads: Gradient) -> float:
        """L2 norm over all parameters."""
        return math.sqrt(self._sum_of_squares(grads))

    def _sum_of_squares(self, grads: Gradient) -> float:
        """Over every gradient, in float32: the square of the norm."""
        squares = [mx.square(g.astype(mx.float32)).sum() for g in named_arrays(grads).values()]
        return self.runtime.numbers({"squares": mx.stack(squares).sum()})["squares"]


def evaluated_layers(model: nn.Module, grads: Gradient, runtime: Runtime) -> Iterator[Gradient]:
    """Gradients by name, evaluated layer by layer; each leaves `grads` when its layer comes.

    What a layer kept for its gradient goes with it.
    """
    for names in by_layer(model):
        layer = {name: grads.pop(name) for name in names}
        runtime.evaluate(layer)
        yield layer


def added(total: Gradient, grads: Gradient, weight: float) -> Gradient:
    """A batch's gradient, weighted by its share of the pairs, and the total so far.

    In float32 where it is a share: sums of many small parts are lost in bfloat16.
    """
    if weight == 1:
        return grads
    part = {name: g.astype(mx.float32) * weight for name, g in grads.items()}
    return {name: total[name] + g for name, g in part.items()} if total else part


def in_dtype_of(model: nn.Module, grads: Gradient) -> Gradient:
    """The gradient with the dtype of each parameter."""
    parameters = named_arrays(model.trainable_parameters())
    return {name: g.astype(parameters[name].dtype) for name, g in grads.items()}


def clipped(grads: Gradient, norm: float, limit: float) -> Gradient:
    """The gradient scaled to a norm of `limit`, as PyTorch does it."""
    scale = limit / (norm + 1e-6)
    return {name: g * scale for name, g in grads.items()}


def check_finite(step: int, loss: float, grad_norm: float = 0.0, *, applied: bool = False) -> None:
    """Refuse a step whose loss or gradient norm is not finite.

    Args:
        step: Counted from 0.
        loss: Of the step.
        grad_norm: Of the step, where it is known.
        applied: Whether the update has been made already.

    Raises:
        NonFiniteError: If one of the two is not.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    outcome = "nothing was applied"
    if applied:
        outcome = (
            "the weights in memory are spoilt; the last checkpoint is not: --resume goes on from "
            "it, and with --grad-clip a step is checked before it is applied"
        )
    raise NonFiniteError(
        f"step {step}: loss {loss}, gradient norm {grad_norm}; {outcome}. Try a lower "
        "--learning-rate, and check the weights the run starts from"
    )


def _root_of_sum(squares: Iterator[float]) -> float:
    return math.sqrt(math.fsum(squares))
