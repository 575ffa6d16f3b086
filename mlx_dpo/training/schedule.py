"""The learning rate as a function of the step."""

import math


def warmup_cosine(
    step: int, *, max_lr: float, min_lr: float, warmup_steps: int, max_steps: int
) -> float:
    """Linear warm-up to `max_lr`, then a cosine down to `min_lr`, which holds from `max_steps` on.

    Args:
        step: Counted from 0; already the first step has a rate above 0.
        max_lr: Rate at the end of warm-up.
        min_lr: Rate at the end of the run.
        warmup_steps: Length of the warm-up.
        max_steps: Length of the run.
    """
    if step >= max_steps:
        return min_lr
    if step < warmup_steps:
        return max_lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (max_steps - warmup_steps)
    return min_lr + 0.5 * (max_lr - min_lr) * (1 + math.cos(math.pi * progress))
