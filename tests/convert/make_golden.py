"""Make data/golden.json: what transformers saves and computes for each tiny model.

    python -m tests.convert.make_golden

Needs torch. The weights are not stored: they follow from the tensors' names.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from mlx_dpo.convert.verify import torch_logits
from tests.convert.tiny import CASES, save_with_transformers, write_folder

FILE = Path(__file__).parent / "data" / "golden.json"
POSITIONS = slice(None, None, 3)
COLUMNS = slice(5, None, 37)
IDS = (np.arange(48)[None] * 37 + 11) % 500


def golden(case: str, folder: Path) -> dict[str, Any]:
    """Config and tensors as transformers saves them, and its logits of made-up weights."""
    save_with_transformers(case, folder)
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in sorted(tensors.keys())}
    logits = torch_logits(write_folder(folder, config, shapes), IDS)
    return {
        "config": config,
        "tensors": shapes,
        "largest": round(float(np.abs(logits).max()), 4),
        "logits": np.round(logits[0, POSITIONS, COLUMNS], 6).astype(float).round(6).tolist(),
    }


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as place:
        found = {case: golden(case, Path(place) / str(number)) for number, case in enumerate(CASES)}
    lines = [f"{json.dumps(case)}: {json.dumps(content)}" for case, content in found.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
