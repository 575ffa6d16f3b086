"""Where each CPU second and each byte of a training step goes: ``python -m benchmarks.profile``.

The step of `benchmarks.step`, model A and B: its graph is computed kernel by kernel, and each
kernel belongs to a part. Prints a table for each model and writes it to docs/benchmarks.md.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import click
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from benchmarks import workload
from benchmarks.counts import VIEWS, flops, moved_by
from benchmarks.kernels import Computation
from benchmarks.measure import now, seconds_unit
from benchmarks.report import publish, table
from benchmarks.step import LENGTH, gradient
from mlx_dpo.memory.graph import Node
from mlx_dpo.memory.recorder import Recording
from mlx_dpo.memory.trace import record_step
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import FastPath

TRUNK, HEAD, ATTENTION = "trunk products", "head products", "attention products"
VOCABULARY, SCORES = "softmax over the vocabulary", "attention: softmax, masks, rotary"
NORMS, ACTIVATIONS = "norms and residuals", "activations"
JOINING, EMBEDDING = "rows and keys joined and cut", "embedding"
SUMS, NORM, OPTIMIZER = "gradient sums of extra forwards", "gradient norm", "optimizer"
REST, BUILDING = "the rest", "building the graph"
PARTS = (
    *(TRUNK, HEAD, ATTENTION, SCORES, NORMS, ACTIVATIONS, VOCABULARY, JOINING, EMBEDDING),
    *(SUMS, NORM, OPTIMIZER, REST, BUILDING),
)
_MOVES = {"Concatenate", "Pad", "SliceUpdate", "Full", "Reshape", "Split", "Slice", "Gather"}
_PATH = FastPath(LENGTH, 0)


@dataclass
class Part:
    """What a part of a step took."""

    seconds: float = 0.0
    flops: int = 0
    bytes_moved: int = 0
    kernels: int = 0


class Profile(NamedTuple):
    """A step by part; its batch; what it needs at least, and the rate of square products."""

    parts: dict[str, Part]
    examples: Sequence[PreferenceExample]
    floor: workload.Floor
    rate: float


def profiled(name: str) -> Profile:
    """Profile a step of a model, on the first batch of `benchmarks.step`."""
    shape = workload.SHAPES[name]
    model = workload.make_model(shape)
    (examples,) = workload.make_batches(shape, 1)
    layers = workload.num_parameters(model) - shape.vocabulary * shape.hidden
    floor = workload.floor_parts(examples, shape, layers)
    rate = workload.sgemm_rate()
    parts = parts_of_step(model, shape, examples)
    start = now()
    gradient(model, _PATH, examples, mx.zeros((2, len(examples))))  # not evaluated
    parts[BUILDING].seconds = now() - start
    return Profile(parts, examples, floor, rate)


def parts_of_step(
    model: nn.Module, shape: workload.Shape, examples: Sequence[PreferenceExample]
) -> dict[str, Part]:
    """Compute a step kernel by kernel, and sum up by part."""
    optimizer = optim.AdamW(learning_rate=1e-6, bias_correction=True)
    recording = record_step(model, optimizer, _PATH, [examples], grad_clip=1.0)
    weights = [array for _, array in cast("list[Any]", tree_flatten(model.parameters()))]
    moments = [mx.zeros(array.shape) for array in recording.graph.inputs[len(weights) :]]
    mx.eval(moments)
    parts: dict[str, Part] = defaultdict(Part)
    size, part_of = moved_by(recording.graph), _sorter(recording, shape)
    moved = {node: size(node) for node in recording.graph.nodes()}

    def computed(event: int, node: Node, seconds: float) -> None:
        assert recording.updated_at is not None
        part = parts[OPTIMIZER if event >= recording.updated_at else part_of(node)]
        part.seconds += seconds
        if node.name not in VIEWS:
            part.flops += flops(node)
            part.bytes_moved += moved[node]
            part.kernels += 1

    Computation(recording, [*weights, *moments]).run(computed)
    return parts


def _sorter(recording: Recording, shape: workload.Shape) -> Callable[[Node], str]:
    """A function that says to which part an operation of the gradient belongs, by its shapes."""
    weights = {a.shape for a in recording.graph.inputs[: len(recording.names)]}
    embedding = (shape.vocabulary, shape.hidden)

    def part_of(node: Node) -> str:
        shapes = [array.shape for array in (*node.inputs, *node.outputs)]
        widths = {width for each in shapes for width in each}
        deep = any(len(each) > 3 for each in shapes)
        if node.name == "Matmul":
            return HEAD if shape.vocabulary in widths else ATTENTION if deep else TRUNK
        if node.name in ("Square", "Reduce") and shapes[0] in weights:
            return NORM
        if node.name == "Add" and shapes[-1] in weights:
            return SUMS
        if shape.vocabulary in widths:
            return EMBEDDING if embedding in shapes else VOCABULARY
        if node.name in _MOVES:
            return JOINING
        if deep:
            return SCORES
        return ACTIVATIONS if shape.mlp in widths else NORMS if shape.hidden in widths else REST

    return part_of


def report(name: str) -> str:
    """Markdown of a model's profile."""
    found = profiled(name)
    least = sum(found.floor) / found.rate
    total = sum(part.seconds for part in found.parts.values())
    own = dict(zip((TRUNK, HEAD, ATTENTION), found.floor, strict=True))
    rows = []
    for title in PARTS:
        part = found.parts.get(title, Part())
        needed = own.get(title)
        rows.append(
            [
                title,
                f"{part.seconds:.2f}",
                f"{part.seconds / total:.0%}",
                f"{part.seconds / least:.2f}",
                f"{part.flops / 1e9:.1f}" if part.flops else "",
                "" if needed is None else f"{part.flops / needed:.2f}",
                "" if needed is None else f"{part.seconds * found.rate / needed:.2f}",
                f"{part.bytes_moved / 1e9:.2f}",
                f"{part.kernels:,}",
            ]
        )
    work = _PATH.work(found.examples)
    header = [
        *("part", seconds_unit(), "share", "÷ floor of the step", "GFLOP"),
        *("÷ needed", "time ÷ its floor", "GB moved", "kernels"),
    ]
    return "\n".join(
        [
            f"### Where a step goes, model {name}",
            "",
            f"`python -m benchmarks.profile`; {workload.machine()}. One batch of "
            f"{len(found.examples)} pairs as a run takes it, clipped; each kernel alone.",
            "",
            table(header, rows),
            "",
            f"Together {total:.2f} {seconds_unit()}, {total / least:.2f} times the floor of "
            f"{least:.2f} at {found.rate / 1e9:.0f} GFLOP/s. Padding is in every part of the trunk:"
            f" {work.computed_tokens} tokens are computed, {work.real_tokens} are real "
            f"({work.computed_tokens / work.real_tokens - 1:.1%} more).",
        ]
    )


@click.command()
@click.option("--model", "models", multiple=True, type=click.Choice(list(workload.SHAPES)))
def main(models: tuple[str, ...]) -> None:
    """Profile a training step by part."""
    for name in models or tuple(workload.SHAPES):
        body = report(name)
        click.echo(body)
        publish(f"profile {name}", body)


if __name__ == "__main__":
    main()
