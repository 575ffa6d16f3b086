"""Options that make no sense, refused before anything is touched."""

from typing import TYPE_CHECKING

import mlx.nn as nn

from mlx_dpo.training.reference import Reference

if TYPE_CHECKING:
    from mlx_dpo.training.trainer import DPOTrainer

_ABOVE_ZERO = (
    *("batch_size", "grad_accumulation", "beta", "max_steps", "eval_every", "log_every"),
    "grad_clip",
)


def check_options(trainer: "DPOTrainer") -> None:
    """Refuse numbers that no training can be done with.

    Raises:
        ValueError: For no examples, `max_seq_len` below 2, a number that must be above 0 and is not
            (batch size, beta, steps, clip), a negative rate, or a fused update that should clip.
    """
    for name in _ABOVE_ZERO:
        value = getattr(trainer, name)
        if value is not None and not value > 0:  # NaN is not, either
            raise ValueError(f"{name} must be above 0, got {value}")
    if not trainer.examples:
        raise ValueError("no training examples")
    if trainer.fused_update and trainer.grad_clip is not None:
        raise ValueError("fused_update and grad_clip: clipping needs the whole gradient first")
    if trainer.max_lr < 0:
        raise ValueError(f"max_lr must not be negative, got {trainer.max_lr}")
    if trainer.max_seq_len <= 1:
        raise ValueError(f"max_seq_len must be at least 2, got {trainer.max_seq_len}")


def check_reference(
    model: nn.Module, ref_model: nn.Module | None, reference: Reference | None
) -> None:
    """Refuse two references, none, and the policy as its own.

    Raises:
        ValueError: If it is so.
    """
    if (ref_model is None) == (reference is None):
        raise ValueError("give exactly one of ref_model and reference")
    if ref_model is model:
        raise ValueError("ref_model is the policy itself: it would train along; load it twice")
