"""Whether memory grows in a long run: `python -m benchmarks.footprint`.

2,000 steps of `mlx_dpo train` on the embedded model, one pair each, with evaluations and
checkpoints on the way. Every 100 steps: the process's resident memory, and MLX's in use and in its
cache. Growth is the slope of a line through them after the first 400 steps. It writes its section
of docs/memory.md; the run itself goes into a folder that is deleted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from benchmarks.report import PAGE, publish, table
from benchmarks.workload import machine
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.config import EMBEDDED_DATA, RunConfig
from mlx_dpo.runs.run import train
from mlx_dpo.training.loss import Metrics

STEPS, EVERY = 2000, 100
WARM = 4  # rows that are left out of the slope
MIB = 2**20
ROOT = Path(__file__).resolve().parent.parent


class Row(NamedTuple):
    """Memory in bytes after `step` steps."""

    step: int
    resident: int
    active: int
    cache: int


class Recorder(Screen):
    """A callback that records the memory every `every` steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[Row] = []

    def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
        """Called after each step, counted from 0."""
        done = step + 1
        if done % self.every == 0:
            memory = (resident_bytes(), mx.get_active_memory(), mx.get_cache_memory())
            self.rows.append(Row(done, *memory))
            print(*self.rows[-1], file=sys.stderr)


def main() -> None:
    """Run, and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer only print")
    steps = parser.parse_args().steps
    rows = record(steps, EVERY * steps // STEPS)
    body = f"{_table(rows)}\n\n{_summary(rows)}"
    print(body)
    if steps == STEPS:
        publish("footprint", f"{machine()}\n\n{body}", PAGE.with_name("memory.md"))


def record(steps: int, every: int) -> list[Row]:
    """The memory of a run of the embedded model."""
    recorder = Recorder(every)
    config = RunConfig(
        model=str(ROOT / "checkpoints/tiny-sft"),
        data=str(ROOT / EMBEDDED_DATA),
        batch_size=1,
        max_length=128,
        learning_rate=1e-6,
        steps=steps,
        eval_every=5 * every,
        save_every=5 * every,
        out="out",
        run_dir="run",
    )
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            train(config, screen=recorder)
        finally:
            os.chdir(here)
    return recorder.rows


def resident_bytes() -> int:
    """Resident memory of this process."""
    asked = ["ps", "-o", "rss=", "-p", str(os.getpid())]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout) * 1024


def slope(rows: Sequence[Row], name: str) -> float:
    """Bytes a step, by least squares over the rows after the warm-up."""
    warm = rows[WARM:]
    steps = [row.step for row in warm]
    return float(np.polyfit(steps, [getattr(row, name) for row in warm], 1)[0])


def _table(rows: Sequence[Row]) -> str:
    shown = rows[WARM - 1 :: 4]
    cells = [[str(r.step), *(f"{b / MIB:.1f}" for b in r[1:])] for r in shown]
    return table(["after step", "resident MiB", "in use by MLX", "in MLX's cache"], cells)


def _summary(rows: Sequence[Row]) -> str:
    first = rows[WARM].step
    growth = {name: 100 * slope(rows, name) / MIB for name in Row._fields[1:]}
    return (
        f"Growth a hundred steps, from step {first} to {rows[-1].step}: resident "
        f"{growth['resident']:+.2f} MiB, in use {growth['active']:+.2f}, cached "
        f"{growth['cache']:+.2f}."
    )


if __name__ == "__main__":
    main()
