"""The training loop of DPO. It knows arrays and pairs; no files, no tokenizer, no printing."""

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import numpy.typing as npt

from mlx_dpo.models.adapters import adapted_modules
from mlx_dpo.models.parameters import is_float32
from mlx_dpo.models.parts import in_training_mode
from mlx_dpo.preferences.batches import EpochOrder, largest_batches
from mlx_dpo.preferences.store import lengths as token_lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.loss import Metrics, pair_metrics
from mlx_dpo.training.optimizers import make_optimizer, warmup_cosine
from mlx_dpo.training.paths import PlainPath, ScoringPath
from mlx_dpo.training.peers import Alone
from mlx_dpo.training.reference import (
    Reference,
    adapter_off,
    frozen_reference,
    reference_path,
    score_in_batches,
)
from mlx_dpo.training.step import Step

AfterStep = Callable[[int, Metrics], None]
Examples = Sequence[PreferenceExample]
Scores = npt.NDArray[np.float32]

_STEP = (
    *("step", "train_loss", "lr", "grad_norm"),
    *("chosen_reward", "rejected_reward", "reward_margin", "accuracy"),
)
_NONE = np.zeros((2, 0), np.float32)
_EVALUATION = ("val_step", "val_loss", "val_accuracy", "val_reward_margin")


class Callback:
    """What a run does around its steps. Here each moment does nothing.

    A moment may raise, and the loop ends with that error. With `before_batch` the trainer is then
    where it was before the step.
    """

    def at_start(self, trainer: "DPOTrainer") -> None:
        """Before the first step of this process: step 0, or where a run is resumed."""

    def before_batch(self, trainer: "DPOTrainer") -> None:
        """Before each batch of a step or an evaluation."""

    def after_step(self, trainer: "DPOTrainer", step: int, metrics: Metrics | None) -> None:
        """A step was made, or left out.

        Args:
            trainer: After the step.
            step: Its number, counted from 0.
            metrics: As `DPOTrainer.train_step` returns them; None where it was left out.
        """

    def at_end(self, trainer: "DPOTrainer") -> None:
        """After the last step and what follows it."""

    def on_error(self, trainer: "DPOTrainer", error: Exception) -> bool:
        """A step raised (see `NonFiniteError.applied`). Whether to go on without its pairs."""
        return False


class History(Callback):
    """Evaluates now and then, and keeps the figures of `DPOTrainer.train` as lists.

    Args:
        eval_examples: Held-out pairs; None or empty for no evaluation.
        after_step: Called with the step's number and its metrics.
        after_eval: The same after an evaluation.

    Attributes:
        lists: The figures, by name.
    """

    def __init__(
        self,
        eval_examples: Examples | None,
        after_step: AfterStep | None,
        after_eval: AfterStep | None,
    ) -> None:
        self.lists: dict[str, list[float]] = {name: [] for name in (*_STEP, *_EVALUATION)}
        self._eval_examples = eval_examples
        self._after_step, self._after_eval = after_step, after_eval

    def after_step(self, trainer: "DPOTrainer", step: int, metrics: Metrics | None) -> None:
        """Append the step's figures, where they are due, and evaluate."""
        last = trainer.is_done
        if metrics is not None:
            if step % trainer.log_every == 0 or last:
                self._append(_STEP, {**metrics, "step": step, "train_loss": metrics["loss"]})
            if self._after_step is not None:
                self._after_step(step, metrics)
        if self._eval_examples and ((step + 1) % trainer.eval_every == 0 or last):
            metrics = trainer.evaluate(self._eval_examples)
            figures = {f"val_{name}": value for name, value in metrics.items()}
            self._append(_EVALUATION, {**figures, "val_step": step})
            if self._after_eval is not None:
                self._after_eval(step, metrics)

    def _append(self, names: Sequence[str], figures: dict[str, float]) -> None:
        for name in names:
            self.lists[name].append(figures[name])


class DPOTrainer:
    """Trains a policy on preference pairs against a reference that never moves.

    Each pair is seen once an epoch, in an order that follows from the seed; evaluation visits
    every pair once. Both differ from sampling with replacement, where some pairs are never seen.

    Args:
        model: The policy, an `mlx.nn.Module` called as ``model(ids)`` for logits. It trains in
            place; only its trainable parameters change. Its dropout is switched off.
        ref_model: The reference, a second module of the same dtype, frozen here. With
            neither it nor `reference`, a model with adapters is its own, its adapters off.
        examples: Training pairs as token ids.
        max_seq_len: Longest prompt + response in tokens; what is beyond it is cut.
        pad_id: Token id to pad with.
        beta: Strength of the pull towards the reference (β of Eq. 7), > 0.
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
        peers: The processes that share each step and each evaluation; by default this is alone.

    Attributes:
        stages: The step, with its phases in seconds and the tokens it computed.
        callbacks: Those of the loop.

    Raises:
        ValueError: For no examples, `max_seq_len` below 2, a number that must be above 0 and is not
            (batch size, beta, steps, clip), a negative rate, a fused update that should clip; for
            two references, none, or the policy as its own.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        ref_model: nn.Module | None = None,
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
        peers: Alone | None = None,
    ) -> None:
        _check_reference(model, ref_model, reference)
        _check_above_zero(
            batch_size=batch_size,
            grad_accumulation=grad_accumulation,
            beta=beta,
            max_steps=max_steps,
            eval_every=eval_every,
            log_every=log_every,
            grad_clip=grad_clip,
        )
        if not examples:
            raise ValueError("no training examples")
        if fused_update and grad_clip is not None:
            raise ValueError("fused_update and grad_clip: clipping needs the whole gradient first")
        if max_lr < 0:
            raise ValueError(f"max_lr must not be negative, got {max_lr}")
        if max_seq_len <= 1:
            raise ValueError(f"max_seq_len must be at least 2, got {max_seq_len}")

        self.model, self.ref_model = model, ref_model
        self.examples, self.max_seq_len = examples, max_seq_len
        self.beta = beta
        self.batch_size, self.grad_accumulation = batch_size, grad_accumulation
        self.max_steps = max_steps
        self.max_lr, self.min_lr, self.warmup_steps = max_lr, min_lr, warmup_steps
        self.eval_every, self.log_every = eval_every, log_every

        self.step = 0
        self._ended = False
        self.callbacks: Sequence[Callback] = ()
        pairs = batch_size * grad_accumulation
        self.order = EpochOrder(len(examples), pairs, seed, lengths=lengths, micro_batch=batch_size)
        self.path = path or PlainPath(max_seq_len, pad_id)
        self._score = reference_path(self.path, float32=is_float32(model))
        in_training_mode(model)
        if ref_model is not None:
            reference = frozen_reference(ref_model, self.score)
        reference = reference or adapter_off(model, self.score)
        self.optimizer = optimizer or make_optimizer(
            "adamw", learning_rate=max_lr, weight_decay=weight_decay
        )
        self.optimizer.init(model.trainable_parameters())
        self.stages = Step(
            model,
            self.optimizer,
            self.path,
            reference,
            beta=beta,
            batch_size=batch_size,
            grad_clip=grad_clip,
            fused=fused_update,
            before_batch=self._before_batch,
            peers=peers,
        )

    @property
    def reference(self) -> Reference:
        """``reference(examples) -> float32 (2, B)``."""
        return self.stages.reference

    def score(self, model: nn.Module, examples: Examples) -> mx.array:
        """Log-probs float32 (2, B) of `examples` under `model`, as a step computes them."""
        return self._score(model, examples)

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
        stages = self.stages
        stages.phases.reset()
        cursor = self.order.state()
        if examples is None:
            with stages.phases("data"):
                examples = [self.examples[i] for i in self.order.next_batch()]
        try:
            metrics = stages.take(examples, number=self.step, lr=self.lr())
        except BaseException:  # also a stop between two batches
            self.order.restore(cursor)
            raise
        self.step += 1
        return metrics

    def check_start(self) -> Metrics:
        """Loss and gradient norm of the first epoch's largest batch, without an update.

        A machine without the memory for a step fails here, before the first: the optimizer's state
        is made, and with `grad_accumulation` a second batch adds its gradient to the first's.

        Returns:
            ``loss``, ``grad_norm``, ``largest_reward`` (absolute) and ``allowed_reward``: what
            rounding explains. Before the first update the loss is log 2 and every reward 0, unless
            policy and reference are not the same model.
        """
        mx.eval(self.optimizer.state)
        pairs = self._largest_pairs()
        loss, grad_norm = self.stages.measure(pairs)
        batches = [
            [pairs[row] for row in rows]
            for rows in self.stages.peers.batches(pairs, self.batch_size)
        ]
        policy, reference = (
            np.concatenate([_NONE, *(np.array(score(batch)) for batch in batches)], axis=1)
            for score in (partial(self.score, self.model), self.reference)
        )
        return {
            "loss": loss,
            "grad_norm": grad_norm,
            "largest_reward": self.beta * float(np.abs(policy - reference).max(initial=0)),
            "allowed_reward": self.beta * (1e-4 + 5e-7 * float(np.abs(reference).max(initial=0))),
        }

    def _largest_pairs(self) -> list[PreferenceExample]:
        """Pairs of the step to start with, in batches as they are trained on."""
        lengths, count = token_lengths(self.examples), self.grad_accumulation
        if self.stages.peers.size > 1:  # shares follow from all pairs of a step
            batches = self.order.first_epoch(self.order.batch_size)[: self.max_steps]
            count = 1
        else:
            batches = self.order.first_epoch()[: self.max_steps * count]
        chosen = largest_batches(batches, lengths, self.max_seq_len, min(2, count))
        rows = [row for batch in chosen for row in batch]
        return [self.examples[row] for row in rows]

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
            score_in_batches,
            batch_size=self.batch_size,
            before_batch=self._before_batch,
            peers=self.stages.peers,
        )
        policy = partial(self.score, self.model)
        return score(policy, examples), score(self.reference, examples)

    def train(
        self,
        eval_examples: Examples | None = None,
        *,
        after_step: AfterStep | None = None,
        after_eval: AfterStep | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> dict[str, list[float]]:
        """Run from the current step to `max_steps`.

        Args:
            eval_examples: Held-out pairs, evaluated every `eval_every` steps and at the end.
            after_step: Called with the step's number, counted from 0, and its metrics.
            after_eval: The same after an evaluation.
            callbacks: Called in this order at each of their moments.

        Returns:
            Lists: ``step train_loss lr grad_norm chosen_reward rejected_reward reward_margin
            accuracy``, every `log_every` steps and at the last, and ``val_step val_loss
            val_accuracy val_reward_margin``.
        """
        history = History(eval_examples, after_step, after_eval)
        self.callbacks = (history, *callbacks)
        for callback in self.callbacks:
            callback.at_start(self)
        while not self.is_done:
            step, metrics = self.step, self._train_or_leave_out()
            for callback in self.callbacks:
                callback.after_step(self, step, metrics)
        for callback in self.callbacks:
            callback.at_end(self)
        return history.lists

    @property
    def is_done(self) -> bool:
        """Whether `train` makes no further step: the last was made, or `end` was called."""
        return self._ended or self.step >= self.max_steps

    def end(self) -> None:
        """Make no step after the present one; a callback calls it, and `train` returns."""
        self._ended = True

    def _train_or_leave_out(self) -> Metrics | None:
        """The next step; None where it raised, and a callback asks to go on without its pairs."""
        try:
            return self.train_step()
        except Exception as error:
            if not any([callback.on_error(self, error) for callback in self.callbacks]):
                raise
        # Cursor and schedule move, weights don't.
        self.order.next_batch()
        self.step += 1
        return None

    def _before_batch(self) -> None:
        for callback in self.callbacks:
            callback.before_batch(self)

    def state(self) -> dict[str, int]:
        """Step and data cursor, for a checkpoint; weights and optimizer are saved beside it."""
        return {"step": self.step, **self.order.state()}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from what `state` returned."""
        self.step = state["step"]
        self.order.restore(state)


def _check_above_zero(**options: float | None) -> None:
    for name, value in options.items():
        if value is not None and not value > 0:  # NaN is not, either
            raise ValueError(f"{name} must be above 0, got {value}")


def _check_reference(
    model: nn.Module, ref_model: nn.Module | None, reference: Reference | None
) -> None:
    both = ref_model is not None and reference is not None
    neither = ref_model is None and reference is None
    if both or (neither and not adapted_modules(model)):
        raise ValueError("give exactly one of ref_model and reference")
    if ref_model is model:
        raise ValueError("ref_model is the policy itself: it would train along; load it twice")
