"""A step with a loss or gradient that is not finite: diagnosed, and left out if allowed."""

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.errors import NonFiniteError
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import Pairs
from mlx_dpo.runs.callbacks import Log, Screen
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.trainer import Callback, DPOTrainer

_SIDES = ("chosen", "rejected")


class SkipNonFinite(Callback):
    """Writes a diagnosis of a step that is not finite, and leaves it out.

    Args:
        pairs: The training pairs.
        limit: Steps in a row that may be left out; 0 for none.
        folder: Where the diagnosis is written.
        screen: Warned of each step that is left out.
    """

    def __init__(self, pairs: Pairs, limit: int, folder: Log, screen: Screen) -> None:
        self._pairs, self._limit = pairs, limit
        self._folder, self._screen = folder, screen
        self._in_a_row = 0

    def at_start(self, trainer: DPOTrainer) -> None:
        """Count the steps that were left out right before the run was stopped."""
        for row in self._folder.last_rows("metrics.jsonl", trainer.step - self._limit):
            self._in_a_row = 0 if "loss" in row else self._in_a_row + ("skipped" in row)

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """A step that was made ends the count."""
        if metrics is not None:
            self._in_a_row = 0

    def on_error(self, trainer: DPOTrainer, error: Exception) -> bool:
        """Leave the step out.

        Raises:
            NonFiniteError: With the diagnosis, if it may not be left out or was applied already:
                the optimizer's state may be lost even where the weights are finite.
        """
        if not isinstance(error, NonFiniteError):
            return False
        diagnosis = diagnose(trainer, self._pairs)
        step, name = diagnosis["step"], f"nonfinite-{diagnosis['step']:06d}.json"
        reason = f"{summary(diagnosis)}; see {self._folder.write_json(name, diagnosis)}"
        if error.applied or diagnosis["weights"] or self._in_a_row >= self._limit:
            raise NonFiniteError(f"{error}; {reason}") from None
        self._in_a_row += 1
        ids = [pair["id"] for pair in diagnosis["pairs"]]
        self._folder.append("metrics.jsonl", {"step": step, "skipped": ids})
        self._screen.warned(f"step {step} left out ({self._in_a_row} in a row): {reason}")
        return True


def diagnose(trainer: DPOTrainer, pairs: Pairs) -> dict[str, Any]:
    """Score the pairs of the step that has just failed, one by one.

    Args:
        trainer: At the step that failed; it is left as it was.
        pairs: The training pairs.

    Returns:
        ``step``, ``learning_rate``, ``pairs`` (each with its id, its four log-probs as numbers or
        text, and the names of those that are not finite), ``weights``: names of parameters that
        are not finite (the first ten).
    """
    rows: list[dict[str, Any]] = []
    for index in trainer.order.peek():
        example = [pairs.examples[index]]
        policy = np.array(trainer.score(trainer.model, example))
        reference = np.array(trainer.reference(example))
        values = {
            f"{who}_{side}": float(logprobs[row, 0])
            for who, logprobs in (("policy", policy), ("reference", reference))
            for row, side in enumerate(_SIDES)
        }
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        # JSON has no spelling for NaN.
        numbers = {n: v if math.isfinite(v) else str(v) for n, v in values.items()}
        rows.append({"id": pairs.ids[index], **numbers, "not_finite": bad})
    arrays = named_arrays(trainer.model.parameters())
    weights = [name for name, array in arrays.items() if not mx.isfinite(array).all().item()]
    return {
        "step": trainer.step,
        "learning_rate": trainer.lr(),
        "pairs": rows,
        "weights": weights[:10],
    }


def summary(diagnosis: dict[str, Any]) -> str:
    """The diagnosis on one line."""
    if diagnosis["weights"]:
        return f"the weights are not finite ({diagnosis['weights'][0]})"
    bad = [f"{name} of pair {p['id']}" for p in diagnosis["pairs"] for name in p["not_finite"]]
    if not bad:
        ids = ", ".join(str(pair["id"]) for pair in diagnosis["pairs"])
        return f"every log-prob is finite, the gradient is not (pairs {ids})"
    return f"not finite: {', '.join(bad[:4])}" + (f" and {len(bad) - 4} more" if bad[4:] else "")
