"""Make data/golden.json and corrected.json: what transformers saves and computes for tiny models.

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
from tests.convert.tiny import CASES, CORRECTED, save_with_transformers, write_folder

FOLDER = Path(__file__).parent / "data"
POSITIONS = slice(None, None, 3)
COLUMNS = slice(5, None, 37)
IDS = (np.arange(48)[None] * 37 + 11) % 500
SHORT = IDS[:, :12]  # than windows and original lengths


def golden(case: str, folder: Path) -> dict[str, Any]:
    """Config and tensors as transformers saves them, and its logits of made-up weights."""
    save_with_transformers(case, folder)
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in sorted(tensors.keys())}
    write_folder(folder, config, shapes)
    logits = torch_logits(folder, IDS)
    found = {
        "config": config,
        "tensors": shapes,
        "largest": round(float(np.abs(logits).max()), 4),
        "logits": _sample(logits),
    }
    if case in CORRECTED:
        found["short"] = _sample(torch_logits(folder, SHORT))
    return found


def _sample(logits: Any) -> Any:
    return np.round(logits[0, POSITIONS, COLUMNS], 6).astype(float).round(6).tolist()


def main() -> None:
    """Write the files."""
    for name, cases in (("golden", CASES), ("corrected", CORRECTED)):
        lines = []
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                lines.append(f"{json.dumps(case)}: {json.dumps(golden(case, Path(folder)))}")
        (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
