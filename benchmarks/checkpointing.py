"""What computing layers again costs in time: `python -m benchmarks.checkpointing`.

A step that keeps activations and one that computes them again, by turns on the same weights: what
else the machine does slows both.
"""

import argparse
from statistics import median

import mlx.core as mx

from benchmarks.measure import now, seconds_unit
from benchmarks.memory import MEMORY_PAGE, MODELS, Cell, make_pairs, make_trainer
from benchmarks.report import publish, table
from benchmarks.workload import machine, make_model
from mlx_dpo.training.trainer import DPOTrainer


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model; prints only")
    parser.add_argument("--steps", type=int, default=5, help="each way, after one to warm up")
    options = parser.parse_args()
    names = ["tiny"] if options.quick else ["A", "B", "360M"]
    unit = seconds_unit()
    head = ["model", f"kept, {unit}", f"computed again, {unit}", "ratio", "lowest", "highest"]
    body = table(head, [row(name, options.steps) for name in names])
    print(body)
    if not options.quick:
        about = f"`python -m benchmarks.checkpointing`; {machine()}, 1 BLAS thread."
        publish("checkpointing", f"{body}\n\n{about}", MEMORY_PAGE)


def row(name: str, steps: int) -> list[str]:
    """Medians of both, and the ratio of neighbouring steps: its median and its range."""
    model = make_model(MODELS[name])
    pairs = make_pairs(MODELS[name], "middling", 4)
    kept, again = (
        make_trainer(Cell(name, checkpoint=checkpoint), model, pairs)
        for checkpoint in (False, True)
    )
    mx.eval(model.parameters())
    for trainer in (kept, again):
        trainer.train_step()
    seconds = [(_seconds(kept), _seconds(again)) for _ in range(steps)]
    ratios = [b / a for a, b in seconds]
    medians = [f"{median(each):.2f}" for each in zip(*seconds, strict=True)]
    return [name, *medians, *(f"{r:.2f}" for r in (median(ratios), min(ratios), max(ratios)))]


def _seconds(trainer: DPOTrainer) -> float:
    begin = now()
    trainer.train_step()
    return now() - begin


if __name__ == "__main__":
    main()
