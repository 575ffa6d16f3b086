"""How much faster ranks are than one process: ``python -m benchmarks.ranks``.

Steps of model A with LoRA of rank 16, in one process and in some on this machine, by turns; each
has one BLAS thread, and seconds are those of the clock: the machine must be quiet. It prints only.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from statistics import median

import click
import mlx.core as mx

from benchmarks.workload import MAX_SEQ_LEN, PAIRS_PER_STEP, SHAPES, make_batches, make_model
from mlx_dpo.models.adapters import attach_adapters
from mlx_dpo.runs.group import joined
from mlx_dpo.runs.launcher import Ranks, is_rank, local_hosts
from mlx_dpo.training.paths import FastPath
from mlx_dpo.training.peers import Alone
from mlx_dpo.training.trainer import DPOTrainer


def seconds_a_step(steps: int, pairs: int) -> list[float]:
    """Of each step but the first, as this process is one of the ranks, or alone."""
    batches = make_batches(SHAPES["A"], -(-pairs // PAIRS_PER_STEP))
    examples = [pair for batch in batches for pair in batch][:pairs]
    model = make_model(SHAPES["A"])
    attach_adapters(model, rank=16)
    with joined() if is_rank() else nullcontext(Alone()) as peers:
        trainer = DPOTrainer(
            model,
            reference=lambda batch: mx.zeros((2, len(batch))),
            examples=examples,
            max_seq_len=MAX_SEQ_LEN,
            pad_id=0,
            beta=0.1,
            batch_size=PAIRS_PER_STEP,
            grad_accumulation=pairs // PAIRS_PER_STEP,
            max_steps=steps + 1,
            max_lr=1e-4,
            grad_clip=1.0,
            path=FastPath(MAX_SEQ_LEN, 0),
            peers=peers,
        )
        seconds = []
        for _ in range(steps + 1):
            begin = time.perf_counter()
            trainer.train_step()
            seconds.append(time.perf_counter() - begin)
        return seconds[1:] if peers.rank == 0 else []


def measured(ranks: int, steps: int, pairs: int) -> list[float]:
    """Seconds of each step, in processes of their own."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "benchmarks.ranks", "--here", "--steps", str(steps)]
    command += ["--pairs", str(pairs)]
    if ranks == 1:
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        running = Ranks(local_hosts(ranks), command, click.echo, stdout=subprocess.PIPE)
        if code := running.wait():
            raise SystemExit(code)
        out = running.said()
    found: list[float] = json.loads(out)
    return found


@click.command()
@click.option("--ranks", default=2, show_default=True)
@click.option("--steps", default=4, show_default=True, help="Of each turn.")
@click.option("--pairs", default=2 * PAIRS_PER_STEP, show_default=True, help="Of a step.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--here", is_flag=True, hidden=True)
def main(ranks: int, steps: int, pairs: int, rounds: int, here: bool) -> None:
    """Compare so many ranks with one process."""
    if here:
        print(json.dumps(seconds_a_step(steps, pairs)))
        return
    alone, together = list[float](), list[float]()
    for _ in range(rounds):
        alone += measured(1, steps, pairs)
        together += measured(ranks, steps, pairs)
    one, some = median(alone), median(together)
    click.echo(
        f"{pairs} pairs a step: {one:.3f} s in one process, {some:.3f} s on {ranks} ranks: "
        f"{one / some:.2f} times as fast"
    )


if __name__ == "__main__":
    main()
