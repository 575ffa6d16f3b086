"""A small real model folder and pairs, in a folder of their own to run in."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.runs.config import RunConfig

ORACLE = Path(__file__).parent.parent / "oracle" / "llama" / "model"

# Ragged, two kinds, fourteen different prompts.
ROWS = [
    {
        "kind": "tone" if i % 2 else "format",
        "user": f"Tell me about the {'quiet ' * (i % 4)}otter number {i}.",
        "chosen": "The otter finds a lantern." + " It is bright." * (i % 3),
        "rejected": "No." + " Go away." * (i % 5),
    }
    for i in range(14)
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with `pairs.json` in it."""
    (tmp_path / "pairs.json").write_text(json.dumps(ROWS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**changes: Any) -> RunConfig:
    """Eight steps on the oracle's llama, evaluated and saved on the way."""
    chosen: dict[str, Any] = {
        "model": str(ORACLE),
        "data": "pairs.json",
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "batch_size": 2,
        "steps": 8,
        "eval_every": 4,
        "save_every": 3,
    }
    return RunConfig(**{**chosen, **changes})
