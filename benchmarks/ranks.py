"""How much faster ranks are than one process: ``python -m benchmarks.ranks``.

Steps of model A with LoRA of rank 16, in one process and in some on this machine, by turns; each
has one BLAS thread, and seconds are those of the clock: the machine must be quiet. As many
processes that compute the same shares and send nothing show what the machine allows. It prints
only.
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
from mlx_dpo.training.peers import Alone, shared_out
from mlx_dpo.training.trainer import DPOTrainer

Steps = list[dict[str, float]]  # seconds of each, by phase; "all" of them together


def seconds_of_steps(steps: int, pairs: int, ranks: int, share: int | None) -> Steps:
    """Of each step but the first, as this process is one of the ranks, or alone.

    Args:
        steps: Their number.
        pairs: Of a step.
        ranks: Among which they are shared out.
        share: Compute only this one, alone.
    """
    batches = make_batches(SHAPES["A"], -(-pairs // PAIRS_PER_STEP))
    examples = [pair for batch in batches for pair in batch][:pairs]
    if share is not None:
        rows = shared_out([sum(map(len, pair)) for pair in examples], ranks)[share]
        examples = [examples[row] for row in rows]
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
            grad_accumulation=-(-pairs // PAIRS_PER_STEP),
            max_steps=steps + 1,
            max_lr=1e-4,
            grad_clip=1.0,
            path=FastPath(MAX_SEQ_LEN, 0),
            peers=peers,
        )
        found = []
        for _ in range(steps + 1):
            begin = time.perf_counter()
            trainer.train_step()
            found.append({"all": time.perf_counter() - begin, **trainer.stages.phases.seconds})
        return found[1:] if peers.rank == 0 else []


def command(steps: int, pairs: int, ranks: int) -> list[str]:
    """What a process runs that is measured."""
    numbers = {"--steps": steps, "--pairs": pairs, "--ranks": ranks}
    words = [word for name, number in numbers.items() for word in (name, str(number))]
    return [sys.executable, "-m", "benchmarks.ranks", "--here", *words]


def alone(words: list[str], shares: int | None = None) -> list[float]:
    """Seconds of each step of one process; of several at once, each with a share, the longest's."""
    commands = [words] if shares is None else [[*words, "--share", str(i)] for i in range(shares)]
    # In sessions of their own, as ranks are: Linux shares out time by session.
    running = [
        subprocess.Popen(each, stdout=subprocess.PIPE, text=True, start_new_session=True)
        for each in commands
    ]
    found = [json.loads(process.communicate()[0]) for process in running]
    return max(([step["all"] for step in steps] for steps in found), key=median)


def together(words: list[str], ranks: int) -> Steps:
    """Steps of ranks that share them."""
    running = Ranks(local_hosts(ranks), words, click.echo, stdout=subprocess.PIPE)
    code, said = running.wait(), running.said()
    if code:
        raise SystemExit(code)
    found: Steps = json.loads(said)
    return found


@click.command()
@click.option("--ranks", default=2, show_default=True)
@click.option("--steps", default=4, show_default=True, help="Of each turn.")
@click.option("--pairs", default=2 * PAIRS_PER_STEP, show_default=True, help="Of a step.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--here", is_flag=True, hidden=True)
@click.option("--share", type=int, hidden=True)
def main(ranks: int, steps: int, pairs: int, rounds: int, here: bool, share: int | None) -> None:
    """Compare so many ranks with one process."""
    if here:
        if found := seconds_of_steps(steps, pairs, ranks, share):  # the first rank has all
            print(json.dumps(found))
        return
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    words = command(steps, pairs, ranks)
    one, unconnected, shared = list[float](), list[float](), Steps()
    for number in range(rounds):
        one += alone(words)
        shared += together(words, ranks)
        unconnected += alone(words, ranks)
        click.echo(
            f"round {number + 1}: {median(one[-steps:]):.3f} s in one process, "
            f"{median(step['all'] for step in shared[-steps:]):.3f} s on {ranks} ranks, "
            f"{median(unconnected[-steps:]):.3f} s in as many that send nothing"
        )
    seconds = {name: median(step[name] for step in shared) for name in ("all", "peers")}
    begin = median(one)
    click.echo(
        f"{pairs} pairs a step: {begin:.3f} s in one process, {seconds['all']:.3f} s on {ranks} "
        f"ranks: {begin / seconds['all']:.2f} times as fast; {begin / median(unconnected):.2f} "
        f"times where nothing is sent; waiting and sums are {seconds['peers']:.3f} s of a step"
    )


if __name__ == "__main__":
    main()
