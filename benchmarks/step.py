"""What a DPO step costs, plain and with each acceleration: ``python -m benchmarks.step``.

Prints a table for each model and writes it to docs/benchmarks.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import click
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from benchmarks import workload
from benchmarks.counts import Counts, counted
from benchmarks.measure import now, seconds_unit
from benchmarks.report import publish, table
from mlx_dpo.memory.recorder import Recorder, record
from mlx_dpo.memory.trace import record_step
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.collate import pad_and_collate_pref
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.layout import Work
from mlx_dpo.training.logprobs import sequence_logprob
from mlx_dpo.training.loss import dpo_loss
from mlx_dpo.training.paths import FastPath, PlainPath

LENGTH = workload.MAX_SEQ_LEN

Score = Callable[..., mx.array]  # called as a `ScoringPath` is


def naive(
    model: nn.Module, examples: Sequence[PreferenceExample], *, gradient: bool = False
) -> mx.array:
    """Every row padded to the longest there may be, all logits: how the method is first written."""
    cx, cy, cm, rx, ry, rm = pad_and_collate_pref(examples, max_seq_len=LENGTH, pad_id=0)
    return mx.stack([sequence_logprob(model(cx), cy, cm), sequence_logprob(model(rx), ry, rm)])


@dataclass
class Contender:
    """A way to take a step, and what it was measured and counted to cost."""

    name: str
    score: Score
    live_reference: bool
    seconds: list[float] = field(default_factory=list)
    reference_seconds: list[float] = field(default_factory=list)
    peak: int = 0
    counts: list[Counts] = field(default_factory=list)


def contenders() -> list[Contender]:
    """The naive step, then one acceleration more in each row."""
    return [
        Contender("naive: four forwards, padded to 384", naive, live_reference=True),
        Contender("padded to the batch (plain path)", PlainPath(LENGTH, 0), live_reference=True),
        Contender(
            "+ joined rows, head on responses",
            FastPath(LENGTH, 0, share_prompts=False),
            live_reference=True,
        ),
        Contender(
            "+ cached reference", FastPath(LENGTH, 0, share_prompts=False), live_reference=False
        ),
        Contender("+ prompt read once", FastPath(LENGTH, 0), live_reference=False),
    ]


def gradient(
    model: nn.Module, score: Score, examples: Sequence[PreferenceExample], reference: mx.array
) -> tuple[mx.array, Any]:
    """Loss and gradient tree of a batch, not yet evaluated."""

    def loss() -> mx.array:
        chosen, rejected = score(model, examples, gradient=True)
        return dpo_loss(chosen, rejected, reference[0], reference[1], beta=0.1)[0]

    loss_and_gradient: tuple[mx.array, Any] = nn.value_and_grad(model, loss)()
    return loss_and_gradient


def take_step(
    contender: Contender,
    model: nn.Module,
    optimizer: optim.Optimizer,
    examples: Sequence[PreferenceExample],
) -> None:
    """One step of AdamW without clipping; adds its seconds and peak memory to the contender."""
    mx.clear_cache()
    mx.reset_peak_memory()
    start = now()
    reference = score_reference(contender, model, examples)
    mx.eval(reference)
    scored = now()
    update(contender, model, optimizer, examples, reference)
    end = now()
    contender.reference_seconds.append(scored - start)
    contender.seconds.append(end - (start if contender.live_reference else scored))
    contender.peak = max(contender.peak, mx.get_peak_memory())


def score_reference(
    contender: Contender, model: nn.Module, examples: Sequence[PreferenceExample]
) -> mx.array:
    """Reference log-probs, not yet evaluated.

    The policy stands for the reference: the same work, and no second copy to hold.
    """
    return mx.stop_gradient(contender.score(model, examples))


def update(
    contender: Contender,
    model: nn.Module,
    optimizer: optim.Optimizer,
    examples: Sequence[PreferenceExample],
    reference: mx.array,
    evaluate: Callable[..., None] = mx.eval,
) -> None:
    """The step once the reference is known."""
    loss, grads = gradient(model, contender.score, examples, reference)
    evaluate(loss, grads)
    optimizer.update(model, grads)
    del grads
    evaluate(model.parameters(), optimizer.state)


def counts_of(
    contender: Contender, model: nn.Module, examples: Sequence[PreferenceExample]
) -> Counts:
    """What a step asks of a machine, its reference included where that is not cached."""

    def take(recorder: Recorder) -> None:
        reference = mx.zeros((2, len(examples)))
        if contender.live_reference:
            reference = score_reference(contender, model, examples)
            recorder.evaluate(reference)
        update(contender, model, optimizer, examples, reference, recorder.evaluate)

    optimizer = optim.AdamW(learning_rate=1e-6, bias_correction=True)
    return counted(record(take, model, optimizer))


def counts_of_run(model: nn.Module, examples: Sequence[PreferenceExample]) -> Counts:
    """The same of the last contender's step as a run takes it: clipped, layer by layer."""
    optimizer = optim.AdamW(learning_rate=1e-6, bias_correction=True)
    return counted(record_step(model, optimizer, FastPath(LENGTH, 0), [examples], grad_clip=1.0))


def largest_gradient_error(model: nn.Module, score: Score, examples: Any) -> float:
    """Between a path's gradient and the plain path's, relative to each tensor's largest entry."""
    reference = mx.zeros((2, len(examples)))
    plain = named_arrays(gradient(model, PlainPath(LENGTH, 0), examples, reference)[1])
    own = named_arrays(gradient(model, score, examples, reference)[1])
    return max(float(mx.abs(own[n] - g).max() / mx.abs(g).max()) for n, g in plain.items())


def measure(name: str, rounds: int) -> str:
    """Markdown of one model: contenders take turns on the same batches."""
    shape = workload.SHAPES[name]
    model = workload.make_model(shape)
    size = workload.num_parameters(model)
    non_embedding = size - shape.vocabulary * shape.hidden
    optimizer = optim.AdamW(learning_rate=1e-6, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    batches = workload.make_batches(shape, rounds)
    rows = contenders()
    rates, floors = [], []
    for examples in batches:
        rates.append(workload.sgemm_rate())
        floors.append(workload.floor_flops(examples, shape, non_embedding))
        for row in rows:
            take_step(row, model, optimizer, examples)
            row.counts.append(counts_of(row, model, examples))
    fast = FastPath(LENGTH, 0)
    works = [fast.work(examples) for examples in batches]
    floor = median(f / r for f, r in zip(floors, rates, strict=True))
    run = counts_of_run(model, batches[0])
    error = largest_gradient_error(model, fast, batches[0][:2])
    first, last = rows[0], rows[-1]
    # A run of one epoch: the reference once for every pair, then the steps.
    epoch = [a + b for a, b in zip(last.seconds, last.reference_seconds, strict=True)]
    lines = [
        f"### Model {name}: {non_embedding / 1e6:.1f} M parameters and an embedding of "
        f"{shape.vocabulary} x {shape.hidden}",
        "",
        table(
            [
                *("step", seconds_unit(), "naive ÷ it", "peak MiB", "over floor"),
                *("products ÷ needed", "GB moved", "kernels", "waits"),
            ],
            [_cells(row, first, floor, floors) for row in rows],
        ),
        "",
        f"One epoch with its reference pass: naive ÷ ours {_ratio(first.seconds, epoch):.2f}. "
        f"Floor {floor:.2f} {seconds_unit()} at {median(rates) / 1e9:.0f} GFLOP/s. Computed ÷ real "
        f"tokens {_share(works, 'computed_tokens'):.3f}; without sharing prompts "
        f"{_share(works, 'unshared_tokens'):.2f}. Gradient against the plain path, largest "
        f"relative: {error:.1e}. {rounds} batches of {workload.PAIRS_PER_STEP} pairs. A run "
        f"measures the gradient and goes layer by layer: {run.kernels:,} kernels and {run.waits} "
        "waits for the first batch.",
        "",
    ]
    return "\n".join(lines)


def _cells(row: Contender, first: Contender, floor: float, floors: Sequence[float]) -> list[str]:
    """What was measured of a row, then what was counted: the same on every CPU."""
    seconds = median(row.seconds)
    needed = [counts.flops / flops for counts, flops in zip(row.counts, floors, strict=True)]
    return [
        row.name,
        f"{seconds:.2f}",
        f"{_ratio(first.seconds, row.seconds):.2f}",
        f"{row.peak / 2**20:.0f}",
        f"{seconds / floor:.2f}",
        f"{median(needed):.3f}",
        f"{median(counts.bytes_moved for counts in row.counts) / 1e9:.1f}",
        f"{median(counts.kernels for counts in row.counts):,.0f}",
        f"{median(counts.waits for counts in row.counts):.0f}",
    ]


def _ratio(above: Sequence[float], below: Sequence[float]) -> float:
    return median(a / b for a, b in zip(above, below, strict=True))


def _share(works: Sequence[Work], name: str) -> float:
    total: int = sum(getattr(work, name) for work in works)
    return total / sum(work.real_tokens for work in works)


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Batches each contender takes.")
@click.option("--model", "models", multiple=True, type=click.Choice(list(workload.SHAPES)))
def main(rounds: int, models: tuple[str, ...]) -> None:
    """Measure a step, one acceleration after another."""
    parts = [
        "`OPENBLAS_NUM_THREADS=1 python -m benchmarks.step` writes this section.",
        "",
        f"{workload.machine()}. Medians of {seconds_unit()}; ratios of the same batch in the same "
        "run. For a Mac see [mac.md](mac.md).",
        "",
    ]
    for name in models or tuple(workload.SHAPES):
        parts.append(measure(name, rounds))
        click.echo(parts[-1])
    publish("step", "\n".join(parts))


if __name__ == "__main__":
    main()
