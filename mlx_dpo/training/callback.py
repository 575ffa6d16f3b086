"""What happens around the steps of `DPOTrainer.train`: callbacks, and the one that is its own."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.loss import Metrics

if TYPE_CHECKING:
    from mlx_dpo.training.trainer import DPOTrainer

AfterStep = Callable[[int, Metrics], None]
Examples = Sequence[PreferenceExample]

_STEP = (
    *("step", "train_loss", "lr", "grad_norm"),
    *("chosen_reward", "rejected_reward", "reward_margin", "accuracy"),
)
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
