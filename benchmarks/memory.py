"""Peak memory of a step, measured and predicted: `python -m benchmarks.memory`.

Thirteen named cells on the shape of a 360-million-parameter llama, and a grid on the two smaller
models of the other benchmarks: frozen copy or cached reference, three optimizers, layer
checkpointing or not, one pair or four, short pairs or long. Weights are random, float32 but in one
cell.

Each cell is a process of its own that first predicts, as `mlx_dpo plan` does, and then measures two
steps, as MLX counts: what its buffer cache holds beside is not in it. Results are kept as they come
in ``runs/memory.jsonl``, and a cell that is there is not measured again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from benchmarks.measure import now, one_thread_environment, seconds_unit
from benchmarks.report import PAGE, publish, table
from benchmarks.workload import SHAPES, Shape, machine, make_model
from mlx_dpo.memory.trace import begin_replay, record_step
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.trainer import DPOTrainer

MODELS = {
    **SHAPES,
    "360M": Shape(960, 32, 15, 5, 2560, 49159),
    "tiny": Shape(64, 4, 4, 2, 128, 512),
}
# Prompt, chosen, rejected.
LENGTHS = {
    "short": ((16, 24, 16), (14, 20, 24), (18, 12, 20), (16, 24, 22)),
    "middling": ((60, 50, 40), (60, 45, 55), (60, 60, 30), (60, 52, 48)),
    "long": ((160, 120, 96), (144, 100, 128), (176, 128, 72), (152, 112, 104)),
}
GRAD_CLIP = 1e-3  # smaller than any gradient norm
MEMORY_PAGE = PAGE.with_name("memory.md")
RESULTS = PAGE.parent.parent / "runs" / "memory.jsonl"


@dataclass(frozen=True)
class Cell:
    """What is measured.

    Attributes:
        model: Of `MODELS`.
        optimizer: Its name; "" where only the forwards are measured.
        copy: Whether the reference is a second model.
        checkpoint: Whether layers compute again for the gradient.
        clip: Whether the gradient is clipped, and so whole in memory.
        lengths: Of `LENGTHS`.
        batch: Pairs of a micro-batch.
        accumulation: Micro-batches of a step.
        dtype: Of weights and moments; bfloat16 with stochastic rounding.
    """

    model: str
    optimizer: str = "adamw"
    copy: bool = False
    checkpoint: bool = False
    clip: bool = False
    lengths: str = "middling"
    batch: int = 4
    accumulation: int = 1
    dtype: str = "float32"

    def key(self) -> str:
        """The cell as text, which finds its result."""
        words = asdict(self)
        if self.dtype == "float32":  # as results were written before there was another
            del words["dtype"]
        return json.dumps(words, sort_keys=True)

    def optimizer_made(self) -> optim.Optimizer:
        """Its optimizer, as a run makes it."""
        inner = make_optimizer(self.optimizer, learning_rate=1e-6, weight_decay=0.0)
        return inner if self.dtype == "float32" else StochasticRounding(inner, seed=0)


NAMED = {
    "forwards of policy and frozen copy alone": Cell("360M", optimizer="", copy=True),
    "frozen copy, AdamW, checkpointing": Cell("360M", copy=True, checkpoint=True),
    "cached reference, AdamW": Cell("360M"),
    "cached reference, AdamW, clipping": Cell("360M", clip=True),
    "cached reference, AdamW, checkpointing": Cell("360M", checkpoint=True),
    "cached reference, AdamW, checkpointing, clipping": Cell("360M", checkpoint=True, clip=True),
    "cached reference, AdamW, checkpointing, one pair": Cell("360M", checkpoint=True, batch=1),
    "cached reference, AdamW, checkpointing, two batches of two": Cell(
        "360M", checkpoint=True, batch=2, accumulation=2
    ),
    "cached reference, Lion, checkpointing": Cell("360M", "lion", checkpoint=True),
    "cached reference, Adafactor, checkpointing": Cell("360M", "adafactor", checkpoint=True),
    "cached reference, Adafactor": Cell("360M", "adafactor"),
    "cached reference, Adafactor, checkpointing, clipping": Cell(
        "360M", "adafactor", checkpoint=True, clip=True
    ),
    "bfloat16, stochastic rounding, AdamW, checkpointing": Cell(
        "360M", checkpoint=True, dtype="bfloat16"
    ),
}


def grid(model: str) -> Iterator[Cell]:
    """Every combination of what changes memory, for one model."""
    for copy, optimizer, checkpoint, batch, lengths in product(
        (False, True), ("adamw", "lion", "adafactor"), (False, True), (1, 4), ("short", "long")
    ):
        yield Cell(model, optimizer, copy, checkpoint, lengths=lengths, batch=batch)


def main() -> None:
    """Measure each cell that was not measured yet, and publish; or measure one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("A", "B", "360M", "tiny"), help="cells of one model")
    parser.add_argument(
        "--publish", action="store_true", help="write what is measured to docs/memory.md"
    )
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell is not None:
        print(json.dumps(measure(Cell(**json.loads(options.cell)))))
        return
    results = _results()
    for cell in _cells(options.only, publishing=options.publish):
        if cell.key() not in results:
            results[cell.key()] = _in_process(cell)
        print(cell, results[cell.key()], file=sys.stderr, flush=True)
    if options.publish:
        body = f"{machine()}, 1 BLAS thread.\n\n{named_table(results)}"
        publish("memory", body, MEMORY_PAGE)
        publish("grid", "\n\n".join(grid_table(name, results) for name in SHAPES), MEMORY_PAGE)


def _cells(only: str | None, *, publishing: bool) -> list[Cell]:
    """The cells to measure; publishing takes what there is."""
    if publishing:
        return []
    names = [only] if only else ["360M", *SHAPES]
    return [c for n in names for c in (NAMED.values() if n == "360M" else grid(n))]


def measure(cell: Cell) -> dict[str, float]:
    """Predicted peak, bytes held between steps, measured peak, and seconds of the second step."""
    shape = MODELS[cell.model]
    pairs = make_pairs(shape, cell.lengths, cell.batch * cell.accumulation)
    path = path_of(cell)
    model = make_model(shape)
    model.set_dtype(getattr(mx, cell.dtype))
    mx.eval(model.parameters())
    size = sum(a.nbytes for a in named_arrays(model.parameters()).values())
    if not cell.optimizer:
        other = make_model(shape)
        mx.reset_peak_memory()
        begin = now()
        mx.eval(path(model, pairs))
        mx.eval(path(other, pairs))
        return {"peak": mx.get_peak_memory(), "seconds": now() - begin}
    recording = record_step(
        model,
        cell.optimizer_made(),
        path,
        [pairs[i : i + cell.batch] for i in range(0, len(pairs), cell.batch)],
        grad_clip=GRAD_CLIP if cell.clip else 0.0,
    )
    replay = begin_replay(recording, model)
    replay.run(recording.events)
    predicted = replay.peak
    trainer = make_trainer(cell, model, pairs, ref_model=make_model(shape) if cell.copy else None)
    mx.eval(model.parameters(), trainer.optimizer.state)
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    trainer.train_step()
    begin = now()
    trainer.train_step()
    return {
        "predicted": predicted + size * cell.copy,
        "held": held,
        "peak": mx.get_peak_memory(),
        "seconds": now() - begin,
    }


def make_trainer(
    cell: Cell,
    model: nn.Module,
    pairs: Sequence[PreferenceExample],
    ref_model: nn.Module | None = None,
) -> DPOTrainer:
    """The trainer of a cell."""
    return DPOTrainer(
        model,
        ref_model=ref_model,
        reference=_cached if ref_model is None else None,
        examples=pairs,
        max_seq_len=512,
        pad_id=0,
        beta=0.1,
        batch_size=cell.batch,
        grad_accumulation=cell.accumulation,
        max_steps=100,
        max_lr=1e-6,
        path=path_of(cell),
        optimizer=cell.optimizer_made(),
        grad_clip=GRAD_CLIP if cell.clip else None,
        fused_update=not cell.clip,
    )


def path_of(cell: Cell) -> FastPath:
    """How a cell computes log-probs."""
    return FastPath(512, 0, checkpoint=cell.checkpoint)


def _cached(batch: Sequence[PreferenceExample]) -> mx.array:
    """What a cache gives: two numbers a pair. Which ones makes no difference to memory."""
    return mx.full((2, len(batch)), -300.0)


def make_pairs(shape: Shape, lengths: str, count: int) -> list[PreferenceExample]:
    """The first pairs of some lengths, their tokens drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    return [
        PreferenceExample(*(rng.integers(3, shape.vocabulary, n).tolist() for n in each))
        for each in LENGTHS[lengths][:count]
    ]


def _in_process(cell: Cell) -> dict[str, float]:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--cell", cell.key()],
        cwd=PAGE.parent.parent,
        env=one_thread_environment(),
        check=True,
        stdout=subprocess.PIPE,
    )
    measured: dict[str, float] = json.loads(ran.stdout)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"cell": cell.key(), **measured}) + "\n")
    return measured


def _results() -> dict[str, dict[str, Any]]:
    if not RESULTS.exists():
        return {}
    rows = map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())
    return {row.pop("cell"): row for row in rows}


def named_table(results: dict[str, dict[str, Any]]) -> str:
    """The cells with names; one that was not measured yet has no figures."""
    rows = []
    for title, cell in NAMED.items():
        figures = results.get(cell.key(), {})
        held, peak, predicted, seconds = map(figures.get, ("held", "peak", "predicted", "seconds"))
        rows.append(
            [
                title,
                *(f"{n / 2**30:.2f}" if n else "" for n in (held, peak, predicted)),
                f"{peak / predicted:.3f}" if peak and predicted else "",
                f"{seconds:.1f}" if seconds else "",
            ]
        )
    head = ["one step of four pairs", "held GiB", "peak GiB", "predicted", "ratio", seconds_unit()]
    return table(head, rows)


def grid_table(model: str, results: dict[str, dict[str, Any]]) -> str:
    """The measured cells of a model's grid, and how far predictions are off."""
    rows, ratios = [], []
    cells = list(grid(model))
    for cell in cells:
        measured = results.get(cell.key())
        if measured is None:
            continue
        ratios.append(measured["peak"] / measured["predicted"])
        words = [
            "copy" if cell.copy else "cached",
            cell.optimizer,
            *(["checkpointing"] if cell.checkpoint else []),
            f"{cell.batch} {cell.lengths}",
        ]
        figures = [measured[name] / 2**20 for name in ("held", "peak", "predicted")]
        rows.append([", ".join(words), *(f"{f:.0f}" for f in figures), f"{ratios[-1]:.3f}"])
    text = f"Model {model}: {len(rows)} of {len(cells)} cells measured"
    if not rows:
        return f"{text}."
    text += f", measured ÷ predicted from {min(ratios):.3f} to {max(ratios):.3f}."
    return text + "\n\n" + table(["step", "held MiB", "peak MiB", "predicted", "ratio"], rows)


if __name__ == "__main__":
    main()
