"""The DPO loss: Eq. 7 of Rafailov et al. 2023, arXiv:2305.18290."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

Metrics = dict[str, float]

PAIR_METRICS = ("loss", "chosen_reward", "rejected_reward", "reward_margin", "accuracy")


def dpo_loss(
    policy_chosen_logp: mx.array,
    policy_rejected_logp: mx.array,
    ref_chosen_logp: mx.array,
    ref_rejected_logp: mx.array,
    *,
    beta: float,
) -> tuple[mx.array, dict[str, mx.array]]:
    """Sigmoid DPO loss of a batch of pairs, with the implicit rewards behind it.

    The implicit reward of a response is ``beta * (log policy - log reference)`` (Sec. 4). The loss
    is ``-log sigmoid(chosen reward - rejected reward)``, averaged over pairs: log 2 while policy
    and reference are equal, whatever the model, the data and beta.

    Args:
        policy_chosen_logp: float32 (B,), summed log-prob of each chosen response, in nats.
        policy_rejected_logp: float32 (B,), the same for the rejected responses.
        ref_chosen_logp: float32 (B,), under the reference. No gradient reaches it.
        ref_rejected_logp: float32 (B,), under the reference. No gradient reaches it.
        beta: Strength of the pull towards the reference (β of Eq. 7), > 0; larger stays closer.

    Returns:
        The loss, float32 (), and float32 () means over the batch: ``chosen_reward``,
        ``rejected_reward``, ``reward_margin``, and ``accuracy``, the share of pairs whose chosen
        reward is strictly greater.

    Raises:
        ValueError: If the four are not of one shape (B,).
    """
    shapes = [
        a.shape
        for a in (policy_chosen_logp, policy_rejected_logp, ref_chosen_logp, ref_rejected_logp)
    ]
    if len(shapes[0]) != 1 or len(set(shapes)) != 1:
        raise ValueError(f"expected four log-probs of one shape (B,), got {shapes}")
    chosen_reward = beta * (policy_chosen_logp - mx.stop_gradient(ref_chosen_logp))
    rejected_reward = beta * (policy_rejected_logp - mx.stop_gradient(ref_rejected_logp))
    margin = chosen_reward - rejected_reward
    loss = nn.softplus(-margin).mean()
    metrics = {
        "chosen_reward": chosen_reward.mean(),
        "rejected_reward": rejected_reward.mean(),
        "reward_margin": margin.mean(),
        "accuracy": (margin > 0).astype(mx.float32).mean(),
    }
    return loss, {name: mx.stop_gradient(value) for name, value in metrics.items()}


def pair_metrics(
    policy: npt.NDArray[np.float32], reference: npt.NDArray[np.float32], *, beta: float
) -> Metrics:
    """Loss, both rewards, margin and accuracy over N pairs, from log-probs (2, N)."""
    chosen, rejected = mx.array(policy)
    ref_chosen, ref_rejected = mx.array(reference)
    loss, metrics = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=beta)
    return {"loss": float(loss), **{name: float(value) for name, value in metrics.items()}}


def add_weighted(total: Metrics, part: Metrics, weight: float) -> None:
    """Add a batch's means to `total`, weighted by its share of the pairs."""
    for name in total:
        total[name] += weight * part[name]
