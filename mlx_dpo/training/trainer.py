"""The training loop of DPO. It knows arrays and pairs; no files, no tokenizer, no printing."""

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import numpy.typing as npt

from mlx_dpo.preferences.batches import EpochOrder
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training import step as update
from mlx_dpo.training.history import History
from mlx_dpo.training.layout import Work
from mlx_dpo.training.loss import (
    PAIR_METRICS,
    Metrics,
    add_weighted,
    as_floats,
    dpo_loss,
    pair_metrics,
)
from mlx_dpo.training.optimizers import make_optimizer, warmup_cosine
from mlx_dpo.training.options import check_options, check_reference
from mlx_dpo.training.paths import PlainPath, ScoringPath
from mlx_dpo.training.reference import Reference, frozen_reference, score_in_batches
from mlx_dpo.training.start import check_start
from mlx_dpo.training.step import Gradient, Phases, check_finite

AfterStep = Callable[[int, Metrics], None]
Examples = Sequence[PreferenceExample]
Scores = npt.NDArray[np.float32]


class DPOTrainer:
    """Trains a policy on preference pairs against a reference that never moves.

    Each pair is seen once an epoch, in an order that follows from the seed; evaluation visits
    every pair once. Both differ from sampling with replacement, where some pairs are never seen.

    Args:
        model: The policy, an `mlx.nn.Module` called as ``model(ids)`` for logits. It trains in
            place; only its trainable parameters change.
        ref_model: The reference, a second module of the same dtype, frozen here; or None.
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
        lengths: int (N, 3), tokens of prompt, chosen and rejected of each of `examples`, to form
            batches of like length within the shuffle; None for a plain shuffle.
        grad_accumulation: Batches per optimizer step. The result equals one undivided batch.
        reference: ``reference(examples) -> float32 (2, B)``, instead of `ref_model`.
        optimizer: Its learning rate is set at each step. By default AdamW with bias correction,
            betas (0.9, 0.999), eps 1e-8.
        path: How log-probs are computed; by default the plain path, the definition.
        fused_update: Whether a step of one batch updates each tensor as soon as its gradient is
            there: less memory, but a gradient that is not finite is noticed after the update. Not
            together with `grad_clip`, which needs the whole gradient first.

    Attributes:
        phases: Seconds of the last step, by phase.
        work: Tokens the last step computed.
        before_batch: Called before each batch of a step or an evaluation; it may raise, and the
            trainer is then where it was before the step.

    Raises:
        ValueError: For options that make no sense: see `check_options` and `check_reference`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        ref_model: nn.Module | None,
        examples: Examples,
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
        path: ScoringPath | None = None,
        fused_update: bool = False,
    ) -> None:
        self.model, self.ref_model = model, ref_model
        self.examples, self.max_seq_len = examples, max_seq_len
        self.beta = beta
        self.batch_size, self.grad_accumulation = batch_size, grad_accumulation
        self.max_steps = max_steps
        self.max_lr, self.min_lr, self.warmup_steps = max_lr, min_lr, warmup_steps
        self.grad_clip, self.fused_update = grad_clip, fused_update
        self.eval_every, self.log_every = eval_every, log_every
        check_options(self)
        check_reference(model, ref_model, reference)

        self.step = 0
        self.phases, self.work = Phases(), Work(0, 0, 0)
        self.before_batch: Callable[[], None] = lambda: None
        pairs = batch_size * grad_accumulation
        self.order = EpochOrder(len(examples), pairs, seed, lengths=lengths, micro_batch=batch_size)
        self.path = path or PlainPath(max_seq_len, pad_id)
        model.eval()  # dropout in the policy alone would start the loss anywhere but at log 2
        if ref_model is not None:
            reference = frozen_reference(ref_model, self.score)
        assert reference is not None
        self.reference = reference
        self.optimizer = optimizer or make_optimizer(
            "adamw", learning_rate=max_lr, weight_decay=weight_decay
        )
        self.optimizer.init(model.trainable_parameters())
        self._value_and_grad = nn.value_and_grad(model, self._loss)

    def score(self, model: nn.Module, examples: Examples) -> mx.array:
        """Log-probs float32 (2, B) of `examples` under `model`, by the path the policy uses."""
        return self.path(model, examples)

    def lr(self, step: int | None = None) -> float:
        """Learning rate of a step counted from 0: linear warm-up, cosine, then `min_lr`."""
        return warmup_cosine(
            self.step if step is None else step,
            max_lr=self.max_lr,
            min_lr=self.min_lr,
            warmup_steps=self.warmup_steps,
            max_steps=self.max_steps,
        )

    def train_step(self, examples: Examples | None = None) -> Metrics:
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
        self.phases.reset()
        self.work = Work(0, 0, 0)
        cursor = self.order.state()
        if examples is None:
            with self.phases("data"):
                examples = [self.examples[i] for i in self.order.next_batch()]
        take = self._fused_step if self._is_fused(examples) else self._whole_step
        try:
            metrics, grad_norm = take(examples)
        except BaseException:  # also a stop between two batches
            self.order.restore(cursor)
            raise
        lr = self.lr()
        self.step += 1
        return {"loss": metrics.pop("loss"), "lr": lr, "grad_norm": grad_norm, **metrics}

    def _whole_step(self, examples: Examples) -> tuple[Metrics, float]:
        """Gradient first, and an update once its norm is known."""
        metrics, grads = self._accumulate(examples)
        with self.phases("update"):
            grad_norm = update.global_norm(grads)
        check_finite(self.step, metrics["loss"], grad_norm)
        if self.grad_clip is not None and grad_norm > self.grad_clip:
            grads = update.clipped(grads, grad_norm, self.grad_clip)
        with self.phases("update"):
            self.optimizer.learning_rate = self.lr()
            update.apply_gradient(self.model, self.optimizer, grads)
        return metrics, grad_norm

    def _fused_step(self, examples: Examples) -> tuple[Metrics, float]:
        """Each tensor updated as soon as its gradient is there, which is freed at once."""
        reference = self._reference_of(examples)
        with self.phases("forward_backward"):
            loss, metrics, grads = self._gradient(examples, reference)
            mx.eval(loss, metrics)
            found = as_floats(loss, metrics)
            check_finite(self.step, found["loss"])
            self.optimizer.learning_rate = self.lr()
            grad_norm = update.apply_and_measure(self.model, self.optimizer, grads)
        check_finite(self.step, found["loss"], grad_norm, applied=True)
        return found, grad_norm

    def _is_fused(self, examples: Examples) -> bool:
        return self.fused_update and len(examples) <= self.batch_size

    def _accumulate(self, examples: Examples) -> tuple[Metrics, Gradient]:
        """Metrics and gradient of the mean over all pairs, one batch in memory at a time."""
        metrics, grads = dict.fromkeys(PAIR_METRICS, 0.0), Gradient()
        for start in range(0, len(examples), self.batch_size):
            batch = examples[start : start + self.batch_size]
            # By pairs, not by batches: a smaller last batch must not count for more.
            weight = len(batch) / len(examples)
            reference = self._reference_of(batch)
            with self.phases("forward_backward"):
                loss, found, part = self._gradient(batch, reference)
                grads = update.added(grads, part, weight)
                del part  # each layer's goes into the sum, and is not kept beside it
                mx.eval(loss, found)
                update.evaluate_gradients(self.model, grads)
            add_weighted(metrics, as_floats(loss, found), weight)
        return metrics, update.in_dtype_of(self.model, grads)

    def _reference_of(self, batch: Examples) -> mx.array:
        """Reference log-probs of a batch of a step, which begins with them."""
        self.before_batch()
        self.work += self.path.work(batch)
        with self.phases("reference"):
            reference = self.reference(batch)
            mx.eval(reference)
        return reference

    def _gradient(
        self, batch: Examples, reference: mx.array
    ) -> tuple[mx.array, dict[str, mx.array], Gradient]:
        """Loss, metrics and gradient of a batch, unevaluated."""
        (loss, metrics), grads = self._value_and_grad(batch, reference)
        return loss, metrics, update.flat_gradient(grads)

    def _loss(self, batch: Examples, reference: mx.array) -> tuple[mx.array, dict[str, mx.array]]:
        policy = self.score(self.model, batch)
        return dpo_loss(policy[0], policy[1], reference[0], reference[1], beta=self.beta)

    def measure(self, examples: Examples) -> tuple[float, float]:
        """Loss and gradient norm of a step with these pairs, which is not taken."""
        if not self._is_fused(examples):
            metrics, grads = self._accumulate(examples)
            return metrics["loss"], update.global_norm(grads)
        loss, _, grads = self._gradient(examples, self.reference(examples))
        return float(loss), update.evaluate_and_measure(self.model, grads)

    def check_start(self) -> Metrics:
        """What the first update will find, without making it; see `start.check_start`."""
        return check_start(self)

    def evaluate(self, eval_examples: Examples) -> Metrics:
        """Loss, both rewards, margin and accuracy over every pair once, without gradient.

        Raises:
            ValueError: If there are no examples.
        """
        policy, reference = self.score_pairs(eval_examples)
        return pair_metrics(policy, reference, beta=self.beta)

    def score_pairs(self, examples: Examples) -> tuple[Scores, Scores]:
        """Policy and reference log-probs of every pair once, each float32 (2, N).

        Both sides score the same batches, so that equal weights give equal numbers.

        Raises:
            ValueError: If there are no examples.
        """
        if not examples:
            raise ValueError("no examples to evaluate")
        score = partial(
            score_in_batches, batch_size=self.batch_size, before_batch=self.before_batch
        )
        policy = partial(self.score, self.model)
        return score(policy, examples), score(self.reference, examples)

    def train(
        self,
        eval_examples: Examples | None = None,
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
        history = History()
        while self.step < self.max_steps:
            step = self.step
            last = step + 1 == self.max_steps
            metrics = self.train_step()
            if step % self.log_every == 0 or last:
                history.add_step(step, metrics)
            if after_step is not None:
                after_step(step, metrics)
            if eval_examples and ((step + 1) % self.eval_every == 0 or last):
                found = self.evaluate(eval_examples)
                history.add_evaluation(step, found)
                if after_eval is not None:
                    after_eval(step, found)
        return history.lists

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
