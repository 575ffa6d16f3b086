"""Cost of a pair as one thing grows at a time: ``python -m benchmarks.scale``.

Prompt to response, length, batch, vocabulary: forward and backward of the plain path and of the
fast one on a small llama. Number of pairs: what it costs to draw a batch of an epoch and fetch its
ids from the disk. Prints a table and writes it to docs/benchmarks.md; a minute or two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from benchmarks.measure import now
from benchmarks.report import publish, table
from benchmarks.step import gradient
from benchmarks.workload import SEED, Shape, machine, make_model
from mlx_dpo.preferences.batches import EpochOrder
from mlx_dpo.preferences.store import StoredExamples
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath

SMALL = Shape(hidden=256, layers=4, heads=4, kv_heads=4, mlp=704, vocabulary=4096)
ROUNDS = 3
STORED_PAIRS = (1_000, 10_000, 100_000)
DRAWN = 200  # batches of four drawn from each


class Case(NamedTuple):
    """One row of the table.

    Attributes:
        grows: What is looked at.
        value: Its value, as shown.
        prompt: Tokens of each prompt.
        response: Tokens of each response.
        batch: Pairs.
        vocabulary: Rows of the embedding.
    """

    grows: str
    value: str
    prompt: int = 128
    response: int = 64
    batch: int = 4
    vocabulary: int = SMALL.vocabulary


def cases() -> Iterator[Case]:
    """Everything that is measured; what a case doesn't name is as in `Case`."""
    for ratio in (1, 2, 4, 8):
        yield Case("prompt : response", f"{ratio} : 1", prompt=64 * ratio)
    for length in (48, 96, 192, 384, 768):
        yield Case("tokens of a row", str(length), length * 2 // 3, length // 3)
    for batch in (1, 2, 4, 8):
        yield Case("pairs of a batch", str(batch), batch=batch)
    for vocabulary in (4096, 16384, 65536):
        yield Case("vocabulary", f"{vocabulary:,}", vocabulary=vocabulary)


def pairs_of(case: Case) -> list[PreferenceExample]:
    """Pairs of random ids, all of one length: no padding, so that one thing grows at a time."""
    rng = np.random.default_rng(SEED)

    def ids(count: int) -> list[int]:
        drawn: list[int] = rng.integers(3, case.vocabulary, count).tolist()
        return drawn

    return [
        PreferenceExample(ids(case.prompt), ids(case.response), ids(case.response))
        for _ in range(case.batch)
    ]


def measure(case: Case) -> list[str]:
    """Both paths by turns, on the same pairs."""
    model = make_model(replace(SMALL, vocabulary=case.vocabulary))
    examples = pairs_of(case)
    length = case.prompt + case.response
    paths: list[ScoringPath] = [PlainPath(length, 0), FastPath(length, 0)]
    reference = mx.zeros((2, case.batch))
    seconds: dict[str, list[float]] = {path.name: [] for path in paths}
    peaks = dict.fromkeys(seconds, 0)
    for round_number in range(ROUNDS + 1):
        for path in paths:
            mx.clear_cache()
            mx.reset_peak_memory()
            start = now()
            mx.eval(gradient(model, path, examples, reference))
            if round_number:  # the first one warms up
                seconds[path.name].append((now() - start) / case.batch)
                peaks[path.name] = max(peaks[path.name], mx.get_peak_memory())
    (plain, fast), (plain_peak, fast_peak) = seconds.values(), peaks.values()
    ratio = median(a / b for a, b in zip(plain, fast, strict=True))
    return [
        *(case.grows, case.value),
        *(f"{1000 * median(each):.0f}" for each in (plain, fast)),
        f"{ratio:.2f}",
        *(f"{peak / 2**20:.0f}" for peak in (plain_peak, fast_peak)),
    ]


def drawing(count: int, folder: Path, per_batch: int = 4) -> float:
    """Seconds a pair to draw batches of an epoch and fetch their ids from a mapped file."""
    lengths = np.tile([128, 64, 64], count)
    file = folder / "tokens.bin"
    np.zeros(lengths.sum(), "<i4").tofile(file)
    tokens = np.memmap(file, dtype="<i4", mode="r")
    examples = StoredExamples(tokens, np.append(0, np.cumsum(lengths)), np.arange(count))
    order = EpochOrder(count, per_batch, SEED)
    start = now()
    for _ in range(DRAWN):
        for row in order.next_batch():
            examples[row]
    return (now() - start) / (DRAWN * per_batch)


def section(rows: Sequence[Sequence[str]], drawn: Sequence[tuple[int, float]]) -> str:
    """Markdown of the page's section."""
    header = ["what grows", "to", "plain, ms a pair", "fast, ms a pair", "plain ÷ fast"]
    peaks = ["plain, peak MiB", "fast, peak MiB"]
    return "\n\n".join(
        [
            "### What a pair costs as things grow",
            f"`python -m benchmarks.scale`; {machine()}. Forward and backward on a llama of hidden "
            f"size {SMALL.hidden} and {SMALL.layers} layers, random weights; medians of {ROUNDS} "
            "turns. What is not named: prompts of 128 tokens, responses of 64, 4 pairs, vocabulary "
            f"{SMALL.vocabulary}. No padding: all pairs are of one length.",
            table([*header, *peaks], rows),
            "Drawing the pairs of a step and fetching their ids from the disk:",
            table(
                ["pairs in the file", "ms a pair"],
                [[f"{count:,}", f"{1000 * seconds:.3f}"] for count, seconds in drawn],
            ),
        ]
    )


def main() -> None:
    """Measure, print and publish."""
    rows = []
    for case in cases():
        rows.append(measure(case))
        print(" | ".join(rows[-1]), flush=True)
    with TemporaryDirectory() as folder:
        drawn = [(count, drawing(count, Path(folder))) for count in STORED_PAIRS]
    body = section(rows, drawn)
    print(body)
    publish("scale", body)


if __name__ == "__main__":
    main()
