"""What a batch of pairs says about the policy, as plain numbers."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_dpo.training.loss import dpo_loss

Metrics = dict[str, float]

PAIR_METRICS = ("loss", "chosen_reward", "rejected_reward", "reward_margin", "accuracy")


def pair_metrics(
    policy: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], *, beta: float
) -> Metrics:
    """Loss, both rewards, margin and accuracy over N pairs, from log-probs (2, N)."""
    chosen, rejected = mx.array(policy)
    ref_chosen, ref_rejected = mx.array(reference)
    return as_floats(*dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta))


def as_floats(loss: mx.array, metrics: dict[str, mx.array]) -> Metrics:
    """What `dpo_loss` returns, evaluated."""
    return {"loss": float(loss), **{name: float(value) for name, value in metrics.items()}}


def add_weighted(total: Metrics, part: Metrics, weight: float) -> None:
    """Add a batch's means to `total`, weighted by its share of the pairs."""
    for name in total:
        total[name] += weight * part[name]
