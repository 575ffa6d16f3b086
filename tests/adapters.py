"""Adapters trained for a few steps."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

from mlx_dpo.runs.run import train
from tests.runs.conftest import ROWS, settings


def train_adapter(folder: Path, **changes: Any) -> Path:
    """Train a LoRA adapter, by default four steps on the oracle's llama and the rows of all tests.

    Args:
        folder: Where the run works; it is made. Its data is `pairs.json`, its run's folder `run`.
        changes: Of the settings.

    Returns:
        The adapter's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.json").write_text(json.dumps(ROWS))
    chosen: dict[str, Any] = {
        "method": "lora",
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "lora_rank": 4,
        "steps": 4,
        "out": str(folder / "adapter"),
        "run_dir": str(folder / "run"),
    }
    with chdir(folder):
        train(settings(**{**chosen, **changes}))
    return folder / "adapter"
