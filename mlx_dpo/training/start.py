"""What a run looks at before its first update: memory for a step, and a loss of log 2."""

from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_dpo.preferences.batches import largest_batches
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.loss import Metrics

if TYPE_CHECKING:
    from mlx_dpo.training.trainer import DPOTrainer


def check_start(trainer: "DPOTrainer") -> Metrics:
    """Loss and gradient norm of the first epoch's largest batch, without an update.

    Whoever has no memory for a step fails here, before the first: the optimizer's state is made,
    and with `grad_accumulation` a second batch adds its gradient to the first's.

    Returns:
        ``loss``, ``grad_norm``, ``largest_reward`` (absolute) and ``allowed_reward``: what rounding
        explains. Before the first update the loss is log 2 and every reward 0, unless policy and
        reference are not the same model.
    """
    mx.eval(trainer.optimizer.state)
    batches = _largest_batches(trainer)
    loss, grad_norm = trainer.measure([example for batch in batches for example in batch])
    policy, reference = (
        np.concatenate([np.array(score(batch)) for batch in batches], axis=1)
        for score in (partial(trainer.score, trainer.model), trainer.reference)
    )
    return {
        "loss": loss,
        "grad_norm": grad_norm,
        "largest_reward": trainer.beta * float(np.abs(policy - reference).max()),
        "allowed_reward": trainer.beta * (1e-4 + 5e-7 * float(np.abs(reference).max())),
    }


def _largest_batches(trainer: "DPOTrainer") -> list[list[PreferenceExample]]:
    """The first epoch's batch that needs most memory; with accumulation, the one after it too."""
    batches = trainer.order.first_epoch()[: trainer.max_steps * trainer.grad_accumulation]
    largest = largest_batches(
        batches, lengths(trainer.examples), trainer.max_seq_len, min(2, trainer.grad_accumulation)
    )
    return [[trainer.examples[row] for row in rows] for rows in largest]
