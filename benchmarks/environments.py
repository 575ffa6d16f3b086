"""A virtual environment for each rival, made once, beside this file and ignored by git."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent / ".venvs"


def _mlx() -> str:
    """The MLX that this program runs on, for the rivals to compute with: on Linux one of three."""
    for backend in ("cuda-13", "cuda-12", "cpu"):
        try:
            return f"mlx[{backend.replace('-', '')}]=={version(f'mlx-{backend}')}"
        except PackageNotFoundError:
            pass
    return f"mlx=={version('mlx')}"


_MLX = [_mlx()]
_MLX_LM = [*_MLX, f"mlx-lm=={version('mlx-lm')}"]

# Arguments of `pip install`, one list a call.
INSTALLS: dict[str, list[list[str]]] = {
    # Its dependencies are a PyTorch stack that its MLX half does without.
    "unsloth": [_MLX_LM, ["--no-deps", "unsloth_zoo==2026.10.9"]],
    "mlx_lm_lora": [[*_MLX_LM, "mlx-lm-lora==5.10.2"]],
    "soup": [[*_MLX_LM, "soup-cli==0.77.0"]],
    "mlx_vlm": [[*_MLX, "mlx-vlm==0.7.10"]],
    # PyTorch first and alone: asked for by another package it may come with CUDA.
    "trl": [["torch==2.13.0"], ["trl==1.16.0", "transformers==5.23.0"]],
}


def python_of(name: str) -> Path:
    """The interpreter of an environment, made if there is none or its packages are others.

    Raises:
        subprocess.CalledProcessError: If a package can't be installed.
    """
    folder = ROOT / name
    python = folder / "bin" / "python"
    made = folder / "made-with.txt"
    recipe = repr(INSTALLS[name])
    if not made.exists() or made.read_text("utf-8") != recipe:
        print(f"making {folder} ...", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=True)
        for packages in INSTALLS[name]:
            _install(python, packages)
        made.write_text(recipe, encoding="utf-8")
    return python


def _install(python: Path, packages: Sequence[str]) -> None:
    options = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", "install", *options, *packages], check=True)
