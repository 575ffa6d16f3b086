"""Which pair of a step, and which of its log-probs, is not a finite number."""

import math
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import Pairs
from mlx_dpo.training.trainer import DPOTrainer

_SIDES = ("chosen", "rejected")


def diagnose(trainer: DPOTrainer, pairs: Pairs) -> dict[str, Any]:
    """Look at the pairs of the step that has just failed, one by one.

    Args:
        trainer: At the step that failed; it is left as it was.
        pairs: The training pairs.

    Returns:
        ``step``, ``learning_rate``, ``pairs`` (each with its id, its four log-probs as numbers or
        text, and the names of those that are not finite), ``weights``: names of parameters that
        are not finite (the first ten).
    """
    found: list[dict[str, Any]] = []
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
        numbers = {name: _json(value) for name, value in values.items()}
        found.append({"id": pairs.ids[index], **numbers, "not_finite": bad})
    return {
        "step": trainer.step,
        "learning_rate": trainer.lr(),
        "pairs": found,
        "weights": _bad_weights(trainer)[:10],
    }


def summary(diagnosis: dict[str, Any]) -> str:
    """The diagnosis in a few words."""
    if diagnosis["weights"]:
        return f"the weights are not finite ({diagnosis['weights'][0]})"
    bad = [f"{name} of pair {p['id']}" for p in diagnosis["pairs"] for name in p["not_finite"]]
    if not bad:
        ids = ", ".join(str(pair["id"]) for pair in diagnosis["pairs"])
        return f"every log-prob is finite, the gradient is not (pairs {ids})"
    return f"not finite: {', '.join(bad[:4])}" + (f" and {len(bad) - 4} more" if bad[4:] else "")


def _bad_weights(trainer: DPOTrainer) -> list[str]:
    arrays = named_arrays(trainer.model.parameters())
    return [name for name, array in arrays.items() if not mx.isfinite(array).all().item()]


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no spelling for NaN
