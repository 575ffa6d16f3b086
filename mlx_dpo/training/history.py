"""What `DPOTrainer.train` returns: the course of a run as lists of equal length."""

from mlx_dpo.training.loss import Metrics

_STEP = (
    *("step", "train_loss", "lr", "grad_norm"),
    *("chosen_reward", "rejected_reward", "reward_margin", "accuracy"),
)
_EVALUATION = ("val_step", "val_loss", "val_accuracy", "val_reward_margin")


class History:
    """A list for each figure of a step, and for each of an evaluation.

    Attributes:
        lists: The figures, by name.
    """

    def __init__(self) -> None:
        self.lists: dict[str, list[float]] = {name: [] for name in (*_STEP, *_EVALUATION)}

    def add_step(self, step: int, metrics: Metrics) -> None:
        """Append what `DPOTrainer.train_step` returned."""
        figures = {**metrics, "step": step, "train_loss": metrics["loss"]}
        for name in _STEP:
            self.lists[name].append(figures[name])

    def add_evaluation(self, step: int, metrics: Metrics) -> None:
        """Append what `DPOTrainer.evaluate` returned after a step."""
        figures = {f"val_{name}": value for name, value in metrics.items()} | {"val_step": step}
        for name in _EVALUATION:
            self.lists[name].append(figures[name])
