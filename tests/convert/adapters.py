"""What tests of adapters share: the models that the stored ones are for, and logits."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.models.adapters import Adapter, attach
from mlx_dpo.models.folder import load_model
from tools.peft_adapters import IDS, POSITIONS, write_base

Logits = npt.NDArray[np.float32]


def base(name: str, folder: Path) -> nn.Module:
    """A tiny model with made-up weights; `folder` is made where it is not there."""
    if not folder.exists():
        write_base(name, folder)
    return load_model(folder)


def logits(model: nn.Module, adapter: Adapter | None = None) -> Logits:
    """Logits float32 (8, V) of the stored tokens at the stored positions.

    Args:
        model: Bare, where an adapter is given; it has it afterwards.
        adapter: To be attached.
    """
    if adapter is not None:
        attach(model, adapter)
    return np.array(model(mx.array(IDS))[0])[POSITIONS]


def difference(first: Logits, second: Logits) -> float:
    """Largest absolute difference."""
    return float(np.abs(first - second).max())
