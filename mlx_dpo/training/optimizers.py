"""The optimizers of a run, by name. Their state is all that a resumed run needs of them.

State beside 4 bytes of weight a parameter: AdamW 8 bytes, Lion 4, Adafactor a row and a column of
each matrix.
"""

import mlx.optimizers as optim


def make_optimizer(name: str, *, learning_rate: float, weight_decay: float) -> optim.Optimizer:
    """An optimizer whose learning rate the trainer sets at each step.

    Args:
        name: ``adamw`` (betas 0.9 and 0.999, eps 1e-8), ``lion`` (betas 0.9 and 0.99; its step is
            a sign, so it wants a learning rate three to ten times lower) or ``adafactor`` (no
            momentum, the learning rate as it is given).
        learning_rate: Of the first step.
        weight_decay: Decoupled decay, on every parameter.

    Raises:
        ValueError: If there is no such optimizer.
    """
    if name == "adamw":
        # MLX's AdamW leaves bias correction off by default, which differs from PyTorch at step 1.
        return optim.AdamW(
            learning_rate=learning_rate,
            betas=[0.9, 0.999],
            eps=1e-8,
            weight_decay=weight_decay,
            bias_correction=True,
        )
    if name == "lion":
        return optim.Lion(learning_rate=learning_rate, weight_decay=weight_decay)
    if name == "adafactor":
        # By itself it would scale the rate by each tensor's size and by the step.
        return optim.Adafactor(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            scale_parameter=False,
            relative_step=False,
        )
    raise ValueError(f"no optimizer {name!r}")
