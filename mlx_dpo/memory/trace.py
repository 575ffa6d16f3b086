"""The step that needs most, traced without being computed, and what is held at its peak."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from mlx_dpo.memory.recorder import Recorder, Recording, record
from mlx_dpo.memory.replay import Replay
from mlx_dpo.memory.settings import (
    ADAPTERS,
    GRADIENTS,
    LOGITS,
    OPTIMIZER,
    WEIGHTS,
    Parts,
    Settings,
    Workload,
)
from mlx_dpo.models.adaptable import wrapped_module
from mlx_dpo.models.adapters import adapted_modules
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.models.parts import is_embedding
from mlx_dpo.preferences.batches import EpochOrder, largest_batches
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.layout import Work
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import ScoringPath
from mlx_dpo.training.step import Batch, Step

_EPOCHS_LOOKED_AT = 4  # the largest batch of a fifth is hardly larger


def record_step(
    model: nn.Module,
    optimizer: optim.Optimizer,
    path: ScoringPath,
    batches: Sequence[Batch],
    *,
    grad_clip: float,
) -> Recording:
    """Trace the step that trains.

    Args:
        model: The policy; its arrays may be unevaluated.
        optimizer: Of the run.
        path: How log-probs are computed.
        batches: The micro-batches, at most two: a third adds nothing to the peak.
        grad_clip: Largest norm of the gradient; 0 for no clipping.
    """
    pairs = [pair for batch in batches for pair in batch]

    def take(recorder: Recorder) -> None:
        step = Step(
            model,
            optimizer,
            path,
            lambda batch: mx.zeros((2, len(batch))),
            beta=0.1,
            batch_size=len(batches[0]),
            grad_clip=grad_clip or None,
            fused=grad_clip == 0,
            runtime=recorder,
        )
        step.take(pairs, number=0, lr=1e-6)

    return record(take, model, optimizer)


@dataclass(frozen=True)
class SquaresPath:
    """Stands for a path where only the update is looked at: its gradient costs next to nothing."""

    name: ClassVar[str] = "squares"
    key: ClassVar[str] = "squares"

    def __call__(self, model: nn.Module, examples: Batch, *, gradient: bool = False) -> mx.array:
        """The same sum for each pair and side."""
        parameters = named_arrays(model.trainable_parameters()).values()
        squares = mx.stack([(p * p).sum().astype(mx.float32) for p in parameters])
        return mx.zeros((2, len(examples))) + squares.sum()

    def work(self, examples: Batch) -> Work:
        """None."""
        return Work(0, 0, 0)


def begin_replay(recording: Recording, model: nn.Module) -> Replay:
    """A replay of a recording, its arrays named, none of its events run."""
    graph, vocabulary = recording.graph, _vocabulary(model)
    # Gradients and updates are known by the shape of a matrix, logits by their width.
    weights = list(zip(recording.names, graph.inputs, strict=False))
    frozen = {array for name, array in weights if name not in recording.trained}
    matrices = {a.shape for a in graph.inputs if len(a.shape) > 1 and a not in frozen}
    for node in graph.nodes():
        for array in node.outputs:
            if array.shape in matrices:
                array.name = GRADIENTS
            elif len(array.shape) > 1 and array.shape[-1] == vocabulary:
                array.name = LOGITS
    weights += zip(recording.trained, recording.parameters, strict=False)
    adapters = tuple(f"{path}.lora_" for path in adapted_modules(model))
    for name, array in weights:
        array.name = ADAPTERS if name.startswith(adapters) else WEIGHTS
    for array in [*graph.inputs[len(recording.names) :], *recording.moments]:
        array.name = OPTIMIZER
    return Replay(graph)


def peak_of(recording: Recording, model: nn.Module, within: slice = slice(None)) -> Parts:
    """Bytes by name at the peak of a recording, within some of its events."""
    replay = begin_replay(recording, model)
    replay.run(recording.events[: within.start or 0])
    replay.forget_peak()
    replay.run(recording.events[within])
    return replay.at_peak


def largest_of(work: Workload, settings: Settings) -> list[list[PreferenceExample]]:
    """The micro-batches of a step that need most; at most two are looked at."""
    sizes = lengths(work.examples)
    size = settings.batch_size
    order = EpochOrder(len(sizes), size, work.seed, lengths=sizes, micro_batch=size)
    count = min(work.epochs, _EPOCHS_LOOKED_AT) * order.batches_per_epoch
    if work.steps:
        count = min(count, work.steps * settings.grad_accumulation)
    batches = [order.next_batch() for _ in range(count)]
    largest = largest_batches(batches, sizes, work.max_length, min(2, settings.grad_accumulation))
    return [[work.examples[row] for row in rows] for rows in largest]


def optimizer_of(settings: Settings) -> optim.Optimizer:
    """The optimizer of a run with these settings."""
    inner = make_optimizer(settings.optimizer, learning_rate=1e-6, weight_decay=0.0)
    # Adapters are float32 whatever their base is.
    is_wide = settings.dtype == "float32" or settings.method == "lora"
    return inner if is_wide else StochasticRounding(inner, seed=0)


def _vocabulary(model: nn.Module) -> int:
    """Rows of the token embedding: a model's largest."""
    tables = [wrapped_module(m) for m in model.modules() if is_embedding(m)]
    return max((int(table.weight.shape[0]) for table in tables), default=0)
