"""The best evaluation of a run: keeps its weights, and ends training when no better one comes."""

import math
from dataclasses import dataclass

from mlx_dpo.runs.callbacks import Evaluate, Screen
from mlx_dpo.runs.checkpoint import Checkpoints, restore_weights
from mlx_dpo.runs.config import BEST, RunConfig
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.trainer import Callback, DPOTrainer


@dataclass(frozen=True, slots=True)
class Kept:
    """Which weights became the finished model.

    Attributes:
        step: Updates they have seen.
        made: Updates the run made.
        planned: Updates the run would have made without --patience.
        by: ``last``; or ``loss`` or ``accuracy``, where held-out pairs selected the step.
        value: That figure at `step`; None for ``last``.
    """

    step: int
    made: int
    planned: int
    by: str
    value: float | None = None

    @property
    def is_selected(self) -> bool:
        """Whether the held-out pairs selected the step: their figures are flattered by that."""
        return self.value is not None


class BestStep(Callback):
    """Finds the best evaluation, whose checkpoint is then kept, and ends the run after --patience.

    It stands between `Evaluate` and `Save`. Which evaluation is the best follows from metrics.jsonl
    alone, so that a resumed run selects the same one.

    Args:
        config: The settings of the run.
        evaluate: Makes the evaluations.
        checkpoints: Of the run; None on a rank that does not write it.
        screen: Hears of an early end.
    """

    def __init__(
        self,
        config: RunConfig,
        evaluate: Evaluate,
        checkpoints: Checkpoints | None,
        screen: Screen,
    ) -> None:
        self._config, self._evaluate = config, evaluate
        self._checkpoints, self._screen = checkpoints, screen

    def at_start(self, trainer: DPOTrainer) -> None:
        """Look at the evaluations before the run was stopped."""
        self._look(trainer)

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Look, if there was an evaluation."""
        if self._evaluate.history and self._evaluate.history[-1][0] == step:
            self._look(trainer)

    def kept(self, trainer: DPOTrainer) -> Kept:
        """Set the policy to the weights to keep, after the last step."""
        made, planned = trainer.step, trainer.max_steps
        best, _ = self._best()
        if self._config.keep != BEST or best is None:
            return Kept(made, made, planned, "last")
        step, figures = best
        if step + 1 < made:
            path = None if self._checkpoints is None else self._checkpoints.of_best()
            if path is None:
                self._screen.warned(
                    f"the checkpoint of step {step + 1}, the best, is missing or damaged: the last "
                    "step is kept instead"
                )
                return Kept(made, made, planned, "last")
            restore_weights(path, trainer)
        by = self._config.best_by
        return Kept(step + 1, made, planned, by, figures[by])

    def _look(self, trainer: DPOTrainer) -> None:
        best, waited = self._best()
        if best is None:
            return
        step, figures = best
        if self._config.keep == BEST and self._checkpoints is not None:
            self._checkpoints.best = step + 1
        patience = self._config.patience
        if patience is not None and waited >= patience and not trainer.is_done:
            trainer.end()
            by = self._config.best_by
            self._screen.ended_early(
                f"stopped early after step {trainer.step} of {trainer.max_steps}: the held-out "
                f"{by} was best at step {step + 1} ({figures[by]:.4f}) and in none of the "
                f"{waited} evaluations since (--patience {patience})"
            )

    def _best(self) -> tuple[tuple[int, Metrics] | None, int]:
        """The first of the best evaluations, and how many were made since."""
        by, best, waited = self._config.best_by, None, 0
        sign = 1 if by == "accuracy" else -1
        for each in self._evaluate.history if self._config.selects else ():
            value = sign * each[1][by]
            if math.isfinite(value) and (best is None or value > sign * best[1][by]):
                best, waited = each, 0
            else:
                waited += 1
        return best, waited
