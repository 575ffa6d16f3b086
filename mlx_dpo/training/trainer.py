"""The training loop of DPO. It knows arrays and pairs; no files, no tokenizer, no printing."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_map

from mlx_dpo.errors import NonFiniteError
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.batches import EpochOrder, by_need
from mlx_dpo.preferences.store import lengths as lengths_of
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.fast.layout import Work
from mlx_dpo.training.loss import dpo_loss
from mlx_dpo.training.metrics import (
    PAIR_METRICS,
    Metrics,
    add_weighted,
    as_floats,
    pair_metrics,
)
from mlx_dpo.training.optimizers import make_optimizer
from mlx_dpo.training.paths import Path, PlainPath
from mlx_dpo.training.reference import Reference, frozen_reference, score_in_batches
from mlx_dpo.training.schedule import warmup_cosine
from mlx_dpo.training.update import (
    evaluate_gradients,
    evaluate_update,
    evaluated_layers,
    sum_of_squares,
)

AfterStep = Callable[[int, Metrics], None]

HISTORY = (
    *("step", "train_loss", "lr", "grad_norm"),
    *("chosen_reward", "rejected_reward", "reward_margin", "accuracy"),
    *("val_step", "val_loss", "val_accuracy", "val_reward_margin"),
)


PHASES = ("data", "reference", "forward_backward", "update")


class DPOTrainer:
    """Trains a policy on preference pairs against a reference that never moves.

    Each pair is seen once an epoch, in an order that follows from the seed; evaluation visits
    every pair once. Both differ from sampling with replacement, where some pairs are never seen.

    Args:
        model: The policy: an `mlx.nn.Module` called as ``model(ids)`` that returns logits. It
            trains in place; only its trainable parameters change.
        ref_model: The reference: a second module of the same dtype, frozen here. None where
            `reference` supplies the log-probs.
        examples: Training pairs as token ids.
        max_seq_len: Longest prompt + response in tokens; what is beyond it is cut.
        pad_id: Token id to pad with.
        beta: Strength of the pull to the reference, > 0.
        batch_size: Pairs per forward and backward pass.
        max_steps: Optimizer steps of the whole run; the schedule ends there.
        max_lr: Learning rate after warm-up.
        min_lr: Learning rate at the end of the cosine.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Decoupled decay, on every parameter.
        grad_clip: Largest global L2 norm of the gradient; None for no clipping.
        eval_every: Steps between evaluations in `train`.
        log_every: Steps between records in the history of `train`.
        seed: Decides the order of the pairs.
        lengths: int (N, 3), tokens of prompt, chosen and rejected of each of `examples`, by which
            batches of like length are formed within the shuffle; None for a plain shuffle.
        grad_accumulation: Batches per optimizer step. The result equals one undivided batch.
        reference: ``reference(examples) -> float32 (2, B)``, instead of `ref_model`.
        optimizer: Any MLX optimizer; by default AdamW with bias correction, betas (0.9, 0.999),
            eps 1e-8. Its learning rate is set at each step.
        path: How log-probs are computed; by default the plain path, the definition.
        fused_update: Whether a step of one batch updates each tensor as soon as its gradient is
            there: less memory, but a gradient that is not finite is noticed after the update. Not
            together with `grad_clip`, which needs the whole gradient first.

    Attributes:
        seconds: Of the last step, by phase: ``data`` (fetching the pairs), ``reference``,
            ``forward_backward``, ``update`` (gradient norm included).
        work: Tokens the last step computed.
        around: Entered around each phase of a step, named as in `seconds`, for whoever measures.
        before_batch: Called before each batch of a step or an evaluation; it may raise, and the
            trainer is then where it was before the step.

    Raises:
        ValueError: For no examples, ``max_seq_len`` below 2, a number that must be above 0 and is
            not (batch size, beta, steps, clip), a negative rate, not exactly one of `ref_model` and
            `reference`, or a `ref_model` that is the policy.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        ref_model: nn.Module | None,
        examples: Sequence[PreferenceExample],
        max_seq_len: int,
        pad_id: int,
        beta: float,
        batch_size: int,
        max_steps: int,
        max_lr: float,
        min_lr: float = 0.0,
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        grad_clip: float | None = None,
        eval_every: int = 100,
        log_every: int = 10,
        seed: int = 0,
        lengths: npt.NDArray[np.int64] | None = None,
        grad_accumulation: int = 1,
        reference: Reference | None = None,
        optimizer: optim.Optimizer | None = None,
        path: Path | None = None,
        fused_update: bool = False,
    ) -> None:
        _check_positive(
            batch_size=batch_size,
            grad_accumulation=grad_accumulation,
            beta=beta,
            max_steps=max_steps,
            eval_every=eval_every,
            log_every=log_every,
            grad_clip=1 if grad_clip is None else grad_clip,
        )
        if not examples:
            raise ValueError("no training examples")
        if fused_update and grad_clip is not None:
            raise ValueError("fused_update and grad_clip: clipping needs the whole gradient first")
        if max_lr < 0:
            raise ValueError(f"max_lr must not be negative, got {max_lr}")
        if max_seq_len <= 1:
            raise ValueError(f"max_seq_len must be at least 2, got {max_seq_len}")
        if (ref_model is None) == (reference is None):
            raise ValueError("give exactly one of ref_model and reference")
        if ref_model is model:
            raise ValueError("ref_model is the policy itself: it would train along; load it twice")

        self.model = model
        self.examples = examples
        self.max_seq_len = max_seq_len
        self.pad_id = pad_id
        self.path = path or PlainPath(max_seq_len, pad_id)
        self.beta = beta
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.max_lr = max_lr
        self.min_lr = min_lr
        self.warmup_steps = warmup_steps
        self.grad_clip = grad_clip
        self.fused_update = fused_update
        self.grad_accumulation = grad_accumulation
        self.eval_every = eval_every
        self.log_every = log_every
        self.step = 0
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.work = Work(0, 0, 0)
        self.before_batch: Callable[[], None] = lambda: None
        self.around: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
        self.order = EpochOrder(
            len(examples),
            batch_size * grad_accumulation,
            seed,
            lengths=lengths,
            micro_batch=batch_size,
        )
        # Dropout in the policy alone would start the loss anywhere but at log 2.
        model.eval()
        self.ref_model = ref_model
        if ref_model is not None:
            reference = frozen_reference(ref_model, self.score)
        assert reference is not None
        self.reference = reference
        self.optimizer = optimizer or make_optimizer(
            "adamw", learning_rate=max_lr, weight_decay=weight_decay
        )
        self.optimizer.init(model.trainable_parameters())
        self._value_and_grad = nn.value_and_grad(model, self._loss)

    def score(self, model: nn.Module, examples: Sequence[PreferenceExample]) -> mx.array:
        """Log-probs float32 (2, B) of `examples` under `model`, by the path the policy uses."""
        return self.path(model, examples)

    def lr(self, step: int | None = None) -> float:
        """Learning rate of a step counted from 0: linear warm-up, cosine, then `min_lr`."""
        step = self.step if step is None else step
        return warmup_cosine(
            step,
            max_lr=self.max_lr,
            min_lr=self.min_lr,
            warmup_steps=self.warmup_steps,
            max_steps=self.max_steps,
        )

    def train_step(self, examples: Sequence[PreferenceExample] | None = None) -> Metrics:
        """One optimizer step.

        Args:
            examples: The pairs of this step, split into batches of `batch_size`; by default the
                next ones of the epoch.

        Returns:
            ``loss lr grad_norm chosen_reward rejected_reward reward_margin accuracy``, of the
            weights before the update. ``grad_norm`` is measured before clipping.

        Raises:
            NonFiniteError: If the loss or the gradient norm is not finite. Weights, optimizer,
                cursor and step are as they were; a fused update does not wait for the norm, and
                where only that is not finite weights and optimizer are lost.
            ValueError: If `examples` is empty.
        """
        if examples is not None and not examples:
            raise ValueError("no examples to train on")
        self.seconds, self.work = dict.fromkeys(PHASES, 0.0), Work(0, 0, 0)
        cursor = self.order.state()
        if examples is None:
            with self._timed("data"):
                examples = [self.examples[i] for i in self.order.next_batch()]
        one_batch = len(examples) <= self.batch_size
        take = self._fused_step if self.fused_update and one_batch else self._whole_step
        try:
            metrics, grad_norm = take(examples)
        except BaseException:  # also a stop between two batches
            self.order.restore(cursor)
            raise
        lr = self.lr()
        self.step += 1
        return {"loss": metrics.pop("loss"), "lr": lr, "grad_norm": grad_norm, **metrics}

    def _whole_step(self, examples: Sequence[PreferenceExample]) -> tuple[Metrics, float]:
        """Gradient first, and an update once its norm is known."""
        metrics, grads = self._accumulate(examples)
        with self._timed("update"):
            grad_norm = math.sqrt(sum_of_squares(grads))
        self._check_finite(metrics["loss"], grad_norm, "nothing was applied")
        if self.grad_clip is not None and grad_norm > self.grad_clip:
            scale = self.grad_clip / (grad_norm + 1e-6)
            grads = tree_map(lambda g: g * scale, grads)
        with self._timed("update"):
            self.optimizer.learning_rate = self.lr()
            self.optimizer.update(self.model, grads)
            flat = named_arrays(grads)
            del grads
            for layer in evaluated_layers(self.model, flat):
                evaluate_update(self.model, self.optimizer, layer)
            mx.eval(self.model.parameters(), self.optimizer.state)
        return metrics, grad_norm

    def _fused_step(self, examples: Sequence[PreferenceExample]) -> tuple[Metrics, float]:
        """Each tensor updated as soon as its gradient is there, which is freed at once.

        The norm is known when all is done: where it is not finite the weights are lost.
        """
        self.before_batch()
        self.work += self.path.work(examples)
        with self._timed("reference"):
            reference = self.reference(examples)
            mx.eval(reference)
        with self._timed("forward_backward"):
            (loss, metrics), grads = self._value_and_grad(examples, reference)
            mx.eval(loss, metrics)
            found = as_floats(loss, metrics)
            self._check_finite(found["loss"], 0.0, "nothing was applied")
            self.optimizer.learning_rate = self.lr()
            self.optimizer.update(self.model, grads)
            flat = named_arrays(grads)
            del grads, loss, metrics
            squares = []
            for layer in evaluated_layers(self.model, flat):
                squares.append(sum_of_squares(layer))
                evaluate_update(self.model, self.optimizer, layer)
            mx.eval(self.model.parameters(), self.optimizer.state)
        grad_norm = math.sqrt(math.fsum(squares))
        self._check_finite(
            found["loss"],
            grad_norm,
            "the weights in memory are spoilt; the last checkpoint is not: --resume goes on from "
            "it, and with --grad-clip a step is checked before it is applied",
        )
        return found, grad_norm

    def _check_finite(self, loss: float, grad_norm: float, outcome: str) -> None:
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise NonFiniteError(
                f"step {self.step}: loss {loss}, gradient norm {grad_norm}; {outcome}. Try a lower "
                "--learning-rate, and check the weights the run starts from"
            )

    def evaluate(self, eval_examples: Sequence[PreferenceExample]) -> Metrics:
        """Loss, both rewards, margin and accuracy over every pair once, without gradient.

        Raises:
            ValueError: If there are no examples.
        """
        policy, reference = self.score_pairs(eval_examples)
        return pair_metrics(policy, reference, beta=self.beta)

    def score_pairs(
        self, examples: Sequence[PreferenceExample]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Policy and reference log-probs of every pair once, each float32 (2, N).

        Both sides score the same batches, so that equal weights give equal numbers.

        Raises:
            ValueError: If there are no examples.
        """
        if not examples:
            raise ValueError("no examples to evaluate")

        def policy(batch: Sequence[PreferenceExample]) -> mx.array:
            self.before_batch()
            return self.score(self.model, batch)

        def reference(batch: Sequence[PreferenceExample]) -> mx.array:
            self.before_batch()
            return self.reference(batch)

        return (
            score_in_batches(policy, examples, batch_size=self.batch_size),
            score_in_batches(reference, examples, batch_size=self.batch_size),
        )

    def check_start(self) -> Metrics:
        """Loss and gradient norm of the first epoch's largest batch, without an update.

        Whoever has no memory for a step fails here, before the first: the optimizer's state is
        made, and with `grad_accumulation` a second batch adds its gradient to the first's.

        Returns:
            ``loss``, ``grad_norm``, ``largest_reward`` (absolute) and ``allowed_reward``: what
            rounding explains. Before the first update the loss is log 2 and every reward 0, unless
            policy and reference are not the same model.
        """
        mx.eval(self.optimizer.state)
        batches = self._largest_batches()
        if self.fused_update and len(batches) == 1:
            loss, grad_norm = self._layerwise_norm(batches[0])
        else:
            metrics, grads = self._accumulate([e for batch in batches for e in batch])
            loss, grad_norm = metrics["loss"], math.sqrt(sum_of_squares(grads))
            del grads
        policy, reference = (
            np.concatenate([np.array(score(batch)) for batch in batches], axis=1)
            for score in (partial(self.score, self.model), self.reference)
        )
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "largest_reward": self.beta * float(np.abs(policy - reference).max()),
            "allowed_reward": self.beta * (1e-4 + 5e-7 * float(np.abs(reference).max())),
        }

    def train(
        self,
        eval_examples: Sequence[PreferenceExample] | None = None,
        *,
        after_step: AfterStep | None = None,
        after_eval: AfterStep | None = None,
    ) -> dict[str, list[float]]:
        """Run from the current step to `max_steps`.

        Args:
            eval_examples: Held-out pairs, evaluated every `eval_every` steps and at the end.
            after_step: Called with the step's number, counted from 0, and its metrics.
            after_eval: The same after an evaluation.

        Returns:
            Lists: ``step train_loss lr grad_norm chosen_reward rejected_reward reward_margin
            accuracy``, every `log_every` steps and at the last, and ``val_step val_loss
            val_accuracy val_reward_margin``.
        """
        history: dict[str, list[float]] = {name: [] for name in HISTORY}
        while self.step < self.max_steps:
            step = self.step
            last = step + 1 == self.max_steps
            metrics = self.train_step()
            if step % self.log_every == 0 or last:
                _append(history, step=step, train_loss=metrics["loss"], **_without_loss(metrics))
            if after_step is not None:
                after_step(step, metrics)
            if eval_examples and ((step + 1) % self.eval_every == 0 or last):
                found = self.evaluate(eval_examples)
                _append(history, val_step=step, val_loss=found["loss"])
                _append(
                    history,
                    val_accuracy=found["accuracy"],
                    val_reward_margin=found["reward_margin"],
                )
                if after_eval is not None:
                    after_eval(step, found)
        return history

    def next_rows(self) -> list[int]:
        """Indices into `examples` of the next step's pairs; nothing moves."""
        cursor = self.order.state()
        rows = self.order.next_batch()
        self.order.restore(cursor)
        return rows

    def skip_step(self) -> None:
        """Leave the next step's pairs out: cursor and schedule move, weights don't."""
        self.order.next_batch()
        self.step += 1

    def state(self) -> dict[str, int]:
        """Step and data cursor, for a checkpoint; weights and optimizer are saved beside it."""
        return {"step": self.step, **self.order.state()}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from what `state` returned."""
        self.step = state["step"]
        self.order.restore(state)

    def _loss(
        self, examples: Sequence[PreferenceExample], reference: mx.array
    ) -> tuple[mx.array, dict[str, mx.array]]:
        policy = self.score(self.model, examples)
        return dpo_loss(policy[0], policy[1], reference[0], reference[1], beta=self.beta)

    def _largest_batches(self) -> list[list[PreferenceExample]]:
        """The first epoch's batch that needs most memory; with accumulation, the one after it too.

        Full ones before a smaller last one, so that they are split as they are here.
        """
        batches = self.order.first_epoch()
        prompt, *responses = lengths_of(self.examples).T
        tokens = np.minimum(prompt[:, None] + np.stack(responses, axis=1), self.max_seq_len)
        largest = by_need(batches[: self.max_steps * self.grad_accumulation], tokens)
        largest = sorted(largest[: min(2, self.grad_accumulation)], key=len, reverse=True)
        return [[self.examples[row] for row in rows] for rows in largest]

    def _layerwise_norm(self, examples: Sequence[PreferenceExample]) -> tuple[float, float]:
        """Loss and gradient norm, a layer's gradient freed before the next one's is there."""
        reference = self.reference(examples)
        (loss, _), grads = self._value_and_grad(examples, reference)
        mx.eval(loss)
        flat = named_arrays(grads)
        del grads
        squares = [sum_of_squares(layer) for layer in evaluated_layers(self.model, flat)]
        return float(loss), math.sqrt(math.fsum(squares))

    def _accumulate(self, examples: Sequence[PreferenceExample]) -> tuple[Metrics, Any]:
        """Metrics and gradient of the mean over all pairs, one batch in memory at a time."""
        total = dict.fromkeys(PAIR_METRICS, 0.0)
        summed: Any = None
        for start in range(0, len(examples), self.batch_size):
            self.before_batch()
            batch = examples[start : start + self.batch_size]
            # By pairs, not by batches: a smaller last batch must not count for more.
            weight = len(batch) / len(examples)
            self.work += self.path.work(batch)
            with self._timed("reference"):
                reference = self.reference(batch)
                mx.eval(reference)
            with self._timed("forward_backward"):
                (loss, metrics), grads = self._value_and_grad(batch, reference)
                if weight != 1:  # in float32: sums of many small parts are lost in bfloat16
                    grads = tree_map(lambda g, w=weight: g.astype(mx.float32) * w, grads)
                summed = grads if summed is None else tree_map(mx.add, summed, grads)
                del grads  # each layer's goes into the sum, and is not kept beside it
                mx.eval(loss, metrics)
                evaluate_gradients(self.model, summed)
            add_weighted(total, as_floats(loss, metrics), weight)
        parameters = self.model.trainable_parameters()
        return total, tree_map(lambda g, p: g.astype(p.dtype), summed, parameters)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        with self.around(phase):
            yield
        self.seconds[phase] += time.perf_counter() - start


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")


def _without_loss(metrics: Metrics) -> Metrics:
    return {name: value for name, value in metrics.items() if name != "loss"}


def _append(history: dict[str, list[float]], **values: float) -> None:
    for name, value in values.items():
        history[name].append(value)
