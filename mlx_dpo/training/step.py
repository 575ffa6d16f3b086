"""One optimizer step: score, loss, gradient in parts, sum over peers, check, clip, update."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.models.parts import by_layer
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.gradient import (
    Gradient,
    Runtime,
    added,
    check_finite,
    clipped,
    evaluated_layers,
    in_dtype_of,
    sum_of_squares,
)
from mlx_dpo.training.layout import Work
from mlx_dpo.training.loss import PAIR_METRICS, Metrics, add_weighted, dpo_loss
from mlx_dpo.training.paths import ScoringPath
from mlx_dpo.training.peers import Alone
from mlx_dpo.training.phases import Phases
from mlx_dpo.training.reference import Reference

Batch = Sequence[PreferenceExample]


class _Part(NamedTuple):
    """A batch's share of the pairs of a step, and its loss and metrics as arrays."""

    weight: float
    scalars: dict[str, mx.array]


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
        peers: The processes that share the step; by default this one is alone. Gradients are
            summed over them before they are checked and clipped, so that all decide alike.
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
        peers: Alone | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self.path, self.reference = path, reference
        self.beta, self.batch_size = beta, batch_size
        self.grad_clip, self.fused = grad_clip, fused
        self.before_batch, self.peers = before_batch, peers or Alone()
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
            metrics, grad_norm = self._read(*self._accumulate(examples))
            return metrics["loss"], grad_norm
        metrics, grads = self._begun(examples)
        squares = []
        for layer in self._evaluated_layers(grads):
            squares.append(sum_of_squares(layer))
            self.runtime.evaluate(squares[-1])
        return metrics["loss"], self._norm_of(squares)

    def _is_fused(self, examples: Batch) -> bool:
        """Whether no rank has more than a batch, and the gradient is not needed whole."""
        return self.fused and max(map(len, self.peers.shares(examples))) <= self.batch_size

    def _whole(self, examples: Batch, number: int, lr: float) -> tuple[Metrics, float]:
        """Gradient first, and an update once its norm is known."""
        parts, grads = self._accumulate(examples)
        with self.phases("update"):
            metrics, grad_norm = self._read(parts, grads)
        check_finite(number, metrics["loss"], grad_norm)
        if self.grad_clip is not None and grad_norm > self.grad_clip:
            grads = clipped(grads, grad_norm, self.grad_clip)
        with self.phases("update"):
            self.optimizer.learning_rate = lr
            self._update(grads)
        return metrics, grad_norm

    def _fused(self, examples: Batch, number: int, lr: float) -> tuple[Metrics, float]:
        """Each layer updated as soon as its gradient is there, which is freed at once."""
        metrics, grads = self._begun(examples)
        check_finite(number, metrics["loss"])
        with self.phases("forward_backward"):
            self.optimizer.learning_rate = lr
            grad_norm = self._norm_of(self._update(grads, measured=True))
        check_finite(number, metrics["loss"], grad_norm, applied=True)
        return metrics, grad_norm

    def _begun(self, examples: Batch) -> tuple[Metrics, Gradient]:
        """Metrics of a step of one batch, and its gradient, unevaluated."""
        batch = [examples[row] for row in self.peers.shares(examples)[self.peers.rank]]
        metrics, grads = dict.fromkeys(PAIR_METRICS, 0.0), Gradient()
        if batch:
            reference = self._reference_of(batch)
            with self.phases("forward_backward"):
                loss, scalars, grads = self._gradient(batch, reference)
                self.runtime.evaluate(loss, scalars)
                metrics = self.runtime.numbers({"loss": loss, **scalars})
        if self.peers.size > 1:
            weight = len(batch) / len(examples)
            with self.phases("peers"):
                metrics = self.peers.totals({n: weight * value for n, value in metrics.items()})
            grads = in_dtype_of(self.model, self._summed(added({}, grads, weight)))
        return metrics, grads

    def _accumulate(self, examples: Batch) -> tuple[list[_Part], Gradient]:
        """Scalars of each batch, and the gradient of the mean over all pairs.

        The activations of one batch are in memory at a time.
        """
        parts, grads = [], Gradient()
        for rows in self.peers.batches(examples, self.batch_size):
            batch = [examples[row] for row in rows]
            # By pairs, not by batches: a smaller last batch must not count for more.
            weight = len(batch) / len(examples)
            reference = self._reference_of(batch)
            with self.phases("forward_backward"):
                loss, scalars, gradient = self._gradient(batch, reference)
                grads = added(grads, gradient, weight)
                del gradient  # each layer's goes into the sum, and is not kept beside it
                self.runtime.evaluate(loss, scalars)
                for _ in self._evaluated_layers(dict(grads)):
                    pass
            parts.append(_Part(weight, {"loss": loss, **scalars}))
        if self.peers.size > 1:
            parts = [self._of_all(parts)]
        grads = self._summed(grads)
        if self.peers.due:
            for layer in self._evaluated_layers(dict(grads)):
                grads.update(layer)
        return parts, in_dtype_of(self.model, grads)

    def _of_all(self, parts: Sequence[_Part]) -> _Part:
        """The scalars of every rank's batches."""
        mine = dict.fromkeys(PAIR_METRICS, 0.0)
        for part in parts:
            add_weighted(mine, self.runtime.numbers(part.scalars), part.weight)
        with self.phases("peers"):
            totals = self.peers.totals(mine)
        return _Part(1.0, {name: mx.array(value) for name, value in totals.items()})

    def _summed(self, grads: Gradient) -> Gradient:
        """The gradient of all ranks' pairs; a rank without pairs adds zeros."""
        if self.peers.size > 1:
            trained = dict(tree_flatten(self.model.trainable_parameters()))
            grads = {name: grads.get(name, mx.zeros(p.shape)) for name, p in trained.items()}
        return self.peers.sums(self.model, grads)

    def _read(self, parts: Sequence[_Part], grads: Gradient) -> tuple[Metrics, float]:
        """Metrics of the mean over all pairs, and the gradient's norm, read at once."""
        scalars = {"squares": sum_of_squares(grads)}
        for number, part in enumerate(parts):
            scalars |= {f"{number} {name}": scalar for name, scalar in part.scalars.items()}
        values = self.runtime.numbers(scalars)
        metrics = dict.fromkeys(PAIR_METRICS, 0.0)
        for number, part in enumerate(parts):
            of_batch = {name: values[f"{number} {name}"] for name in part.scalars}
            add_weighted(metrics, of_batch, part.weight)
        return metrics, math.sqrt(values["squares"])

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
        policy = self.path(self.model, batch, gradient=True)
        return dpo_loss(policy[0], policy[1], reference[0], reference[1], beta=self.beta)

    def _evaluated_layers(self, grads: Gradient) -> Iterator[Gradient]:
        """Gradients layer by layer; of sums over the peers, what this rank adds comes first."""
        due = self.peers.due
        if not due:
            yield from evaluated_layers(self.model, grads, self.runtime)
        while due:
            self.runtime.evaluate(due[0].mine)
            if self.runtime.ahead and len(due) > 1:
                self.runtime.begin(due[1].mine)
            with self.phases("peers"):
                names = self.peers.complete()
            layer = {name: grads.pop(name) for name in names}
            self.runtime.evaluate(layer)
            yield layer

    def _update(self, grads: Gradient, *, measured: bool = False) -> list[mx.array]:
        """Update the model, layer by layer; `grads` is emptied.

        Returns:
            Sum of squares of each layer's gradient, evaluated, where they are `measured`.
        """
        self.optimizer.update(self.model, tree_unflatten(list(grads.items())))
        ahead = self.runtime.ahead and not self.peers.due  # no update waits on a GPU for a peer
        update = self._update_ahead if ahead else self._update_in_turn
        squares = update(grads, measured)
        self.runtime.evaluate(self.model.parameters(), self.optimizer.state)
        return squares

    def _update_in_turn(self, grads: Gradient, measured: bool) -> list[mx.array]:
        """On a CPU: as little as can be is alive at a time.

        One kind of moment after the other and the weights last: evaluated together, the products of
        all would be alive at once.
        """
        squares = []
        for layer in self._evaluated_layers(grads):
            if measured:
                squares.append(sum_of_squares(layer))
                self.runtime.evaluate(squares[-1])
            kinds = self._updates_of(layer)
            layer.clear()
            for arrays in kinds:
                self.runtime.evaluate(arrays)
        return squares

    def _update_ahead(self, grads: Gradient, measured: bool) -> list[mx.array]:
        """On a GPU: a layer's gradient and update are one piece of work, begun before it is due."""
        squares, begun = [], deque[list[mx.array]]()
        for names in by_layer(self.model):
            layer = {name: grads.pop(name) for name in names}
            work = [array for arrays in self._updates_of(layer) for array in arrays]
            if measured:
                squares.append(sum_of_squares(layer))
                work.append(squares[-1])
            layer.clear()
            self.runtime.begin(work)
            begun.append(work)
            if len(begun) > self.runtime.ahead:
                self.runtime.evaluate(begun.popleft())
        return squares

    def _updates_of(self, layer: Gradient) -> list[list[mx.array]]:
        """What waits for a layer's gradients: each kind of moment, and the weights."""
        kinds: dict[str, list[mx.array]] = {}
        for name, moment in named_arrays(self.optimizer.state).items():
            parameter, _, kind = name.rpartition(".")
            if parameter in layer:
                kinds.setdefault(kind, []).append(moment)
        parameters = named_arrays(self.model.trainable_parameters())
        return [*kinds.values(), [parameters[name] for name in layer]]

    def _norm_of(self, squares: Sequence[mx.array]) -> float:
        """L2 norm from the sum of squares of each layer."""
        values = self.runtime.numbers({str(i): each for i, each in enumerate(squares)})
        return math.sqrt(math.fsum(values.values()))
