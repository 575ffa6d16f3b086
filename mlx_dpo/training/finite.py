"""A loss or gradient that is no number ends the step, with what is left of the weights said."""

import math

from mlx_dpo.errors import NonFiniteError


def check_finite(step: int, loss: float, grad_norm: float = 0.0, *, applied: bool = False) -> None:
    """Refuse a step whose loss or gradient norm is not finite.

    Args:
        step: Counted from 0.
        loss: Of the step.
        grad_norm: Of the step, where it is known.
        applied: Whether the update has been made already.

    Raises:
        NonFiniteError: If one of the two is not.
    """
    if math.isfinite(loss) and math.isfinite(grad_norm):
        return
    outcome = "nothing was applied"
    if applied:
        outcome = (
            "the weights in memory are spoilt; the last checkpoint is not: --resume goes on from "
            "it, and with --grad-clip a step is checked before it is applied"
        )
    raise NonFiniteError(
        f"step {step}: loss {loss}, gradient norm {grad_norm}; {outcome}. Try a lower "
        "--learning-rate, and check the weights the run starts from"
    )
