"""What a prediction of memory is made for and what it says: settings, workload, bytes by part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.nn as nn

from mlx_dpo.memory.replay import OTHER
from mlx_dpo.models.adapters import Adapter
from mlx_dpo.records import PreferenceExample

WEIGHTS, OPTIMIZER, GRADIENTS, LOGITS = "weights", "optimizer state", "gradients", "logits"
REFERENCE, ADAPTERS, UNPACKED = "reference", "adapters", "unpacked weights"
PARTS = (WEIGHTS, ADAPTERS, REFERENCE, OPTIMIZER, GRADIENTS, OTHER, LOGITS, UNPACKED)
Parts = dict[str, int]  # bytes by name


@dataclass(frozen=True)
class Settings:
    """The settings of a run that decide its memory; the names are `RunConfig`'s."""

    reference: str = "cached"
    batch_size: int = 4
    grad_accumulation: int = 1
    checkpoint_layers: bool = False
    dtype: str = "float32"
    optimizer: str = "adamw"
    grad_clip: float = 1.0
    plain: bool = False
    method: str = "full"
    lora_rank: int | None = None
    lora_layers: int | None = None
    lora_modules: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the whole gradient is there before any of it is used."""
        return self.grad_clip > 0 or self.grad_accumulation > 1

    @property
    def of_model(self) -> "Settings":
        """Those that decide the policy's arrays; the others have their defaults."""
        names = ("dtype", "method", "lora_rank", "lora_layers", "lora_modules")
        return Settings(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Workload:
    """What is trained on what.

    Attributes:
        shell: Makes the model from shapes, in a dtype named as in `Settings`.
        examples: Training pairs.
        max_length: Longest prompt + response in tokens.
        pad_id: Token id to pad with.
        seed: Decides which pairs meet in a batch.
        epochs: Times each pair is seen.
        steps: Optimizer steps, where fewer.
        adapter: Makes the adapter that training starts from, for a model from shapes; None for a
            new one, as the settings say.
    """

    shell: Callable[[str], nn.Module]
    examples: Sequence[PreferenceExample]
    max_length: int
    pad_id: int
    seed: int = 0
    epochs: int = 1
    steps: int | None = None
    adapter: Callable[[nn.Module], Adapter] | None = None


@dataclass(frozen=True)
class Prediction:
    """The peak of a run.

    Attributes:
        settings: For which it is.
        parts: Bytes at that moment by name, in the order of `PARTS`; they add up to the total.
        moment: When it is: in a step, or in the self-check.
        path: How log-probs are computed.
        num_parameters: Of the policy; a quantised weight counts as one.
        num_trained: Of these, parameters that are trained.
        pairs: Of the largest micro-batch, tokens of each prompt, chosen and rejected response.
    """

    settings: Settings
    parts: Parts
    moment: str
    path: str
    num_parameters: int
    num_trained: int
    pairs: list[tuple[int, int, int]]

    @property
    def total(self) -> int:
        """Predicted peak in bytes."""
        return total(self.parts)

    @property
    def on_gpu(self) -> int:
        """The same where packed weights are multiplied as they are, which a CPU does not do."""
        return self.total - self.parts.get(UNPACKED, 0)


def total(parts: Parts) -> int:
    """Bytes of all parts."""
    return sum(parts.values())
