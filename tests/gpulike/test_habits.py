"""The emulator has the habits that it says, in child processes; and the demo trains on an M5."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_dpo.models.device import TF32_SWITCH

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

HABITS = """
import json
import mlx.core as mx
import mlx.nn as nn
import numpy as np

a, b = (mx.random.normal((256, 256), key=mx.random.key(seed)) for seed in (0, 1))
exact = np.array(a, np.float64) @ np.array(b, np.float64)
whole, part = np.array(a @ b), np.array(a[:8] @ b)
ids = mx.array(np.arange(300, dtype=np.int32) % 3)
weights = mx.random.normal((300, 4))
embedding = nn.Embedding(3, 4)
gradient = nn.value_and_grad(embedding, lambda: (embedding(ids) * weights).sum())
print(json.dumps({
    "error": float(np.abs(whole - exact).max() / np.abs(exact).max()),
    "differing": float((whole[:8] != part).mean()),
    "difference": float(np.abs(whole[:8] - part).max() / np.abs(exact).max()),
    "gradients": len({np.array(gradient()[1]["weight"]).tobytes() for _ in range(5)}),
}))
"""


def _python(*words: str, m5: bool, switch: str | None, cwd: Path = ROOT) -> str:
    """What a Python with the habits of a GPU prints."""
    environment = {name: value for name, value in os.environ.items() if name != TF32_SWITCH}
    environment |= {} if switch is None else {TF32_SWITCH: switch}
    paths = [str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"GPULIKE_TF32": str(int(m5)), "PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run(
        [sys.executable, *words], env=environment, cwd=cwd, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("m5", "switch", "cut"),
    [(False, None, False), (True, "0", False), (True, None, True), (True, "1", True)],
)
def test_products_and_gradients_of_a_child_are_those_of_a_gpu(
    m5: bool, switch: str | None, cut: bool
) -> None:
    found = json.loads(_python("-c", HABITS, m5=m5, switch=switch))
    assert found["differing"] > 0.1
    assert 0 < found["difference"] < 1e-6
    assert found["gradients"] > 1
    assert (1e-4 < found["error"] < 2e-3) if cut else found["error"] < 1e-6


@pytest.mark.parametrize("switch", [None, "1"])
def test_the_demo_trains_on_an_m5(tmp_path: Path, switch: str | None) -> None:
    """On the fast path: TF32 is off where nobody turned it on, and allowed for where one did."""
    for name in ("checkpoints", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    places = ("--out", str(tmp_path / "out"), "--run-dir", str(tmp_path / "run"))
    command = ("-m", "mlx_dpo", "train", "-v", "--steps", "12", *places)
    printed = _python(*command, m5=True, switch=switch, cwd=tmp_path)
    (path,) = [line for line in printed.splitlines() if line.startswith("path")]
    assert "shared-prompt: agrees" in path
    assert (f"TF32 is on ({TF32_SWITCH}=1)" in printed) is (switch == "1")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, rows) if "loss" in row]
    assert len(losses) == 12
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert (tmp_path / "out" / "model.safetensors").exists()
