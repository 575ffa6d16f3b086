"""What batches of pairs of like length save: ``python -m benchmarks.forming``.

Prints a table and writes it to docs/benchmarks.md. The same pairs in the order a run takes them in,
and in the plain shuffle it would be without the pairs' lengths.
"""

from itertools import chain

import click
import mlx.core as mx
import numpy as np

from benchmarks.measure import now, seconds_unit
from benchmarks.report import publish, table
from benchmarks.step import gradient
from benchmarks.workload import (
    MAX_SEQ_LEN,
    PAIRS_PER_STEP,
    SEED,
    SHAPES,
    machine,
    make_batches,
    make_model,
)
from mlx_dpo.preferences.batches import POOL, EpochOrder
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.layout import Work
from mlx_dpo.training.paths import FastPath

PATH = FastPath(MAX_SEQ_LEN, 0)
COUNTED = 1000  # batches whose work is counted; that costs no forward

Batch = list[PreferenceExample]


def orders(pairs: list[PreferenceExample]) -> tuple[list[Batch], list[Batch]]:
    """The batches of an epoch: a plain shuffle, and formed by length."""
    plain = EpochOrder(len(pairs), PAIRS_PER_STEP, SEED)
    formed = EpochOrder(len(pairs), PAIRS_PER_STEP, SEED, lengths=lengths(pairs))
    plain_batches, formed_batches = (
        [[pairs[i] for i in order.next_batch()] for _ in range(order.batches_per_epoch)]
        for order in (plain, formed)
    )
    return plain_batches, formed_batches


def measure(name: str, num_batches: int) -> list[list[str]]:
    """Rows of the table: seconds by turns, and what counting says of many more batches."""
    shape = SHAPES[name]
    model = make_model(shape)
    reference = mx.zeros((2, PAIRS_PER_STEP))
    sides = orders(list(chain(*make_batches(shape, num_batches))))
    mx.eval(gradient(model, PATH, sides[0][0], reference))  # the first is slow
    spent = np.zeros(2)
    for turn in zip(*sides, strict=True):
        for side, batch in enumerate(turn):
            mx.clear_cache()
            start = now()
            mx.eval(gradient(model, PATH, batch, reference))
            spent[side] += now() - start
    counted = orders(list(chain(*make_batches(shape, COUNTED))))
    works = [sum((PATH.work(batch) for batch in batches), Work(0, 0, 0)) for batches in counted]
    forwards = [np.mean([num_forwards(batch) for batch in batches]) for batches in counted]
    return [
        [
            f"{name}, {order}",
            f"{seconds:.1f}",
            f"{seconds / spent[0]:.3f}",
            f"{mean:.2f}",
            f"{work.computed_tokens / work.real_tokens:.3f}",
        ]
        for order, seconds, mean, work in zip(
            ("shuffled", "formed"), spent, forwards, works, strict=True
        )
    ]


def num_forwards(batch: Batch) -> int:
    """Calls of the model that a batch takes."""
    layout = PATH.layout(batch)
    return len(layout.context_groups) + len(layout.row_groups)


@click.command()
@click.option("--batches", default=2 * POOL, show_default=True, help="Batches that are timed.")
@click.option("--model", "models", multiple=True, type=click.Choice(list(SHAPES)))
def main(batches: int, models: tuple[str, ...]) -> None:
    """Measure what forming batches by length saves."""
    rows = [row for name in models or tuple(SHAPES) for row in measure(name, batches)]
    header = ["model, order", seconds_unit(), "÷ shuffled", "forwards a batch"]
    header.append("computed ÷ real tokens")
    body = table(header, rows)
    about = (
        f"`python -m benchmarks.forming`; {machine()}. {batches} batches of {PAIRS_PER_STEP} pairs "
        f"each way, forward and backward, by turns; forwards and tokens counted over {COUNTED}."
    )
    print(body)
    publish("forming", f"### Batches formed by length\n\n{about}\n\n{body}")


if __name__ == "__main__":
    main()
