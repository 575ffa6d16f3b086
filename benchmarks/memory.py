"""Peak memory of a step on a 360-million-parameter shape: `python -m benchmarks.memory`.

Llama with random weights, hidden 960, 32 layers, 15 query and 5 key-value heads, MLP 2560,
vocabulary 49159, output layer tied to the embedding; four pairs of about 110 tokens, float32. Each
row is measured in a process of its own, over two steps, as MLX counts: what its buffer cache holds
beside is not in it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from benchmarks.measure import now, one_thread_environment
from benchmarks.report import PAGE, publish, table
from benchmarks.workload import Shape, machine, make_model
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.optimizers import make_optimizer
from mlx_dpo.training.paths import SharedPromptPath
from mlx_dpo.training.trainer import DPOTrainer

SHAPE = Shape(960, 32, 15, 5, 2560, 49159)
TINY = Shape(64, 4, 4, 2, 128, 512)
LENGTHS = ((60, 50, 40), (60, 45, 55), (60, 60, 30), (60, 52, 48))  # prompt, chosen, rejected
MEMORY_PAGE = PAGE.with_name("memory.md")


@dataclass(frozen=True)
class Cell:
    """One row of the table.

    Attributes:
        title: As in the table.
        optimizer: Its name; "" where only the forwards are measured.
        copy: Whether the reference is a second model.
        checkpoint: Whether layers compute again for the gradient.
        clip: Whether the gradient is clipped, and so whole in memory.
    """

    title: str
    optimizer: str = "adamw"
    copy: bool = False
    checkpoint: bool = True
    clip: bool = False


CELLS = (
    Cell("forwards of policy and frozen copy alone", optimizer="", copy=True, checkpoint=False),
    Cell("frozen copy, AdamW, checkpointing", copy=True),
    Cell("cached reference, AdamW", checkpoint=False),
    Cell("cached reference, AdamW, clipping", checkpoint=False, clip=True),
    Cell("cached reference, AdamW, checkpointing"),
    Cell("cached reference, AdamW, checkpointing, clipping", clip=True),
    Cell("cached reference, Lion, checkpointing", optimizer="lion"),
    Cell("cached reference, Adafactor, checkpointing", optimizer="adafactor"),
)


def main() -> None:
    """Measure each row and publish, or measure one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model; prints only")
    parser.add_argument("--cell", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell is not None:
        print(json.dumps(measure(CELLS[options.cell], TINY if options.quick else SHAPE)))
        return
    found: list[dict[str, float]] = []
    for number, cell in enumerate(CELLS):
        found.append(_in_process(number, options.quick))
        print(f"{cell.title}: {found[-1]['peak'] / 2**30:.2f} GiB", file=sys.stderr)
    body = _table(found)
    print(body)
    if not options.quick:
        publish("memory", f"{machine()}, 1 BLAS thread.\n\n{body}", MEMORY_PAGE)


def measure(cell: Cell, shape: Shape) -> dict[str, float]:
    """Bytes held between steps, peak bytes within two steps, and seconds of the second."""
    model = make_model(shape)
    pairs = _pairs(shape)
    path = SharedPromptPath(512, 0, checkpoint=cell.checkpoint)
    if not cell.optimizer:
        other = make_model(shape)
        mx.reset_peak_memory()
        begin = now()
        mx.eval(path(model, pairs))
        mx.eval(path(other, pairs))
        return {"held": 0, "peak": mx.get_peak_memory(), "seconds": now() - begin}
    trainer = DPOTrainer(
        model,
        ref_model=make_model(shape) if cell.copy else None,
        reference=None if cell.copy else _cached,
        examples=pairs,
        max_seq_len=512,
        pad_id=0,
        beta=0.1,
        batch_size=len(pairs),
        max_steps=2,
        max_lr=1e-6,
        path=path,
        optimizer=make_optimizer(cell.optimizer, learning_rate=1e-6, weight_decay=0.0),
        grad_clip=1.0 if cell.clip else None,
        fused_update=not cell.clip,
    )
    mx.eval(model.parameters(), trainer.optimizer.state)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    trainer.train_step()
    begin = now()
    trainer.train_step()
    return {"held": held, "peak": mx.get_peak_memory(), "seconds": now() - begin}


def _cached(batch: Sequence[PreferenceExample]) -> mx.array:
    """What a cache gives: two numbers a pair. Which ones makes no difference to memory."""
    return mx.full((2, len(batch)), -300.0)


def _pairs(shape: Shape) -> list[PreferenceExample]:
    rng = np.random.default_rng(0)
    return [
        PreferenceExample(*(rng.integers(3, shape.vocabulary, n).tolist() for n in each))
        for each in LENGTHS
    ]


def _in_process(number: int, quick: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--cell", str(number)]
    ran = subprocess.run(
        command + ["--quick"] * quick,
        cwd=Path(__file__).resolve().parent.parent,
        env=one_thread_environment(),
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def _table(found: list[dict[str, float]]) -> str:
    rows = [
        [
            cell.title,
            f"{one['held'] / 2**30:.2f}" if one["held"] else "",
            f"{one['peak'] / 2**30:.2f}",
            f"{one['seconds']:.1f}",
        ]
        for cell, one in zip(CELLS, found, strict=True)
    ]
    return table(["one step of four pairs", "held GiB", "peak GiB", "CPU s"], rows)


if __name__ == "__main__":
    main()
