"""A signal in the first second of a command, while its modules are still being imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs.conftest import ORACLE

# Sends itself the signal when a module is looked for, which is the same moment on every machine.
EARLY = """
import os, sys

class Once:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})

from mlx_dpo.__main__ import main
sys.meta_path.insert(0, Once())
sys.argv = ["mlx_dpo", "train", "--model", {model!r}, "--data", "pairs.json", "--run-dir", "run"]
main()
"""


@pytest.mark.parametrize("number", [2, 15], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["click", "mlx_dpo.cli.train", "mlx.core", "mlx_dpo.runs.run"])
def test_a_signal_before_training_exits_75_with_one_line_and_leaves_nothing(
    tmp_path: Path, module: str, number: int
) -> None:
    (tmp_path / "pairs.json").write_text("[]")
    program = EARLY.format(module=module, number=number, model=str(ORACLE))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 75
    (line,) = done.stderr.splitlines()
    assert line.startswith("mlx_dpo: ")
    assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.json"]
