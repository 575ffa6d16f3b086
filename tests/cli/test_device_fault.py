"""A GPU that fails in the middle of a run: one line, exit code 8, and a parent that restarts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_dpo.errors import is_device_fault, is_shortage
from mlx_dpo.runs.supervise import supervise
from tests.runs.conftest import ORACLE

pytestmark = pytest.mark.survival

# As MLX words it (backend/metal/device.cpp), with what Metal says of some causes.
WATCHDOG = (
    "[METAL] Command buffer execution failed: Impacting Interactivity "
    "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)."
)
TIMEOUT = (
    "[METAL] Command buffer execution failed: Caused GPU Timeout Error "
    "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)."
)
VICTIM = (
    "[METAL] Command buffer execution failed: Discarded (victim of GPU error/recovery) "
    "(00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)."
)
MEMORY = (
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)."
)

PROGRAM = """
import sys
import mlx.core as mx
from mlx_dpo.cli import main
from mlx_dpo.runs.callbacks import Save

real, saved = mx.eval, Save.after_step

def after_step(self, trainer, step, metrics):
    saved(self, trainer, step, metrics)
    if step == 2:
        mx.eval = fail  # in the step after the checkpoint of step 3

def fail(*arrays):
    raise RuntimeError({message!r})

if {fails}:
    Save.after_step = after_step
main(sys.argv[1:])
"""
TRAIN = ["train", "--model", str(ORACLE), "--data", "pairs.json", "--batch-size", "4"]
RUN = [*TRAIN, "--steps", "6", "--save-every", "3", "--run-dir", "run", "--out", "out"]


@pytest.mark.parametrize("message", [WATCHDOG, TIMEOUT, VICTIM])
def test_what_metal_says_of_a_fault_is_no_shortage_of_memory(message: str) -> None:
    assert is_device_fault(RuntimeError(message))
    assert not is_shortage(RuntimeError(message))


def test_a_shortage_of_memory_is_no_fault() -> None:
    assert is_shortage(RuntimeError(MEMORY))
    assert not is_device_fault(RuntimeError(MEMORY))
    assert not is_device_fault(ValueError(TIMEOUT)), "no error of MLX"


def test_a_gpu_fault_ends_with_exit_8_and_a_supervised_run_goes_on(workplace: Path) -> None:
    commands: list[list[str]] = []
    warnings: list[str] = []

    def command(again: bool) -> list[str]:
        program = PROGRAM.format(message=WATCHDOG, fails=not again)
        arguments = ["train", "--resume", "--run-dir", "run"] if again else RUN
        commands.append([sys.executable, "-c", program, *arguments])
        return commands[-1]

    def launch(arguments: list[str]) -> subprocess.Popen[bytes]:
        with Path("stderr").open("ab") as file:
            return subprocess.Popen(arguments, stderr=file, stdout=subprocess.DEVNULL)

    assert supervise(Path("run"), command, warn=warnings.append, launch=launch) == 0
    assert len(commands) == 2
    (line,) = [text for text in Path("stderr").read_text().splitlines() if "the GPU failed" in text]
    assert line.startswith("mlx_dpo: the GPU failed ([METAL] Command buffer")
    assert "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1" in line
    assert warnings == [
        "a GPU fault ended the run: its message above says what helps; starting again, 1/3"
    ]
    (crash,) = json.loads(Path("run/crashes.json").read_text())
    assert crash == {"signal": "a GPU fault", "steps_logged": 3}
    assert not list(Path("run").glob("step-000004")), "nothing is saved after a fault"
    steps = [json.loads(row) for row in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "loss" in row] == list(range(6))
