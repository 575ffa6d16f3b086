"""What a run will hold at its peak, from shapes and lengths alone.

The peak is that of `mx.get_peak_memory()`: MLX's buffer cache and the rest of the process come on
top. It is looked for in a step of the largest micro-batch and in the self-check before the first
step; scoring, evaluation and sampling keep no gradient and stay below them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_dpo.memory.graph import uncollected
from mlx_dpo.memory.recorder import Recorder, Recording, record
from mlx_dpo.memory.replay import OTHER, Replay
from mlx_dpo.memory.shapes import num_bytes
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.batches import EpochOrder, by_need
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.self_check import PlainValues
from mlx_dpo.training.step import Batch, Step

WEIGHTS, OPTIMIZER, GRADIENTS, LOGITS = "weights", "optimizer state", "gradients", "logits"
REFERENCE = "reference"
PARTS = (WEIGHTS, REFERENCE, OPTIMIZER, GRADIENTS, OTHER, LOGITS)
_EPOCHS_LOOKED_AT = 4  # the largest batch of a fifth is hardly larger


@dataclass(frozen=True)
class Settings:
    """What of a run's settings decides its memory; the names are `RunConfig`'s."""

    reference: str = "cached"
    batch_size: int = 4
    grad_accumulation: int = 1
    checkpoint_layers: bool = False
    dtype: str = "float32"
    optimizer: str = "adamw"
    grad_clip: float = 1.0
    plain: bool = False


@dataclass(frozen=True)
class Workload:
    """What is trained on what.

    Attributes:
        shell: Makes the policy from shapes, in a dtype named as in `Settings`.
        examples: Training pairs.
        max_length: Longest prompt + response in tokens.
        pad_id: Token id to pad with.
        seed: Decides which pairs meet in a batch.
        epochs: Times each pair is seen.
        steps: Optimizer steps, where fewer.
    """

    shell: Callable[[str], nn.Module]
    examples: Sequence[PreferenceExample]
    max_length: int
    pad_id: int
    seed: int = 0
    epochs: int = 1
    steps: int | None = None


@dataclass(frozen=True)
class Prediction:
    """The peak of a run.

    Attributes:
        settings: For which it is.
        parts: Bytes at that moment by name, in the order of `PARTS`; they add up to the total.
        moment: When it is: in a step, or in the self-check.
        path: How log-probs are computed.
        num_parameters: Of the policy.
        pairs: Of the largest micro-batch, tokens of each prompt, chosen and rejected response.
    """

    settings: Settings
    parts: dict[str, int]
    moment: str
    path: str
    num_parameters: int
    pairs: list[tuple[int, int, int]]

    @property
    def total(self) -> int:
        """Predicted peak in bytes."""
        return sum(self.parts.values())


class Predictor:
    """Predicts for one workload; what was predicted before is remembered."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._steps: dict[Settings, Prediction] = {}
        self._checks: dict[str, Replay] = {}
        self._shells: dict[str, nn.Module] = {}

    def __call__(self, settings: Settings) -> Prediction:
        """The peak under these settings."""
        alone = replace(settings, reference="cached")
        if alone not in self._steps:
            self._steps[alone] = self._predict(alone)
        found = self._steps[alone]
        if settings.reference == "copy":
            parts = found.parts | {REFERENCE: num_bytes(self._shell(settings.dtype))}
            found = replace(found, settings=settings, parts=parts)
        if settings.plain or (check := self._check(settings.dtype)).peak <= found.total:
            return found
        moment = "the self-check before the first step"
        return replace(found, parts=_parts(check), moment=moment)

    def least(self, settings: Settings) -> int:
        """Lower bound of the peak, without tracing: weights, reference copy, optimizer state."""
        model = self._shell(settings.dtype)
        optimizer = make_settings_optimizer(settings)
        optimizer.init(model.trainable_parameters())
        state = sum(a.nbytes for a in named_arrays(optimizer.state).values())
        return num_bytes(model) * (1 + (settings.reference == "copy")) + state

    def _shell(self, dtype: str) -> nn.Module:
        if dtype not in self._shells:
            self._shells[dtype] = self.workload.shell(dtype)
        return self._shells[dtype]

    def _check(self, dtype: str) -> Replay:
        if dtype not in self._checks:
            work, model = self.workload, self._shell(dtype)
            plain = PlainPath(work.max_length, work.pad_id)
            recording = record(lambda r: PlainValues(plain, model, work.examples, r), model)
            self._checks[dtype] = replay(recording, model)
        return self._checks[dtype]

    def _predict(self, settings: Settings) -> Prediction:
        model = self._shell(settings.dtype)
        batches = largest_batches(self.workload, settings)
        path, recording = self._recorded(model, settings, batches)
        found = replay(recording, model)
        count = sum(a.size for a in named_arrays(model.parameters()).values())
        sizes = [(len(p), len(c), len(r)) for p, c, r in batches[0]]
        return Prediction(settings, _parts(found), "a step", path.name, count, sizes)

    def _recorded(
        self, model: nn.Module, settings: Settings, batches: Sequence[Batch]
    ) -> tuple[ScoringPath, Recording]:
        """The fastest path whose step can be traced, as a run takes the fastest that works."""
        work, again = self.workload, settings.checkpoint_layers
        kinds: list[Callable[..., ScoringPath]] = [PlainPath]
        if not settings.plain:
            kinds = [FastPath, partial(FastPath, share_prompts=False), PlainPath]
        while True:
            path: ScoringPath = kinds.pop(0)(work.max_length, work.pad_id, again)
            optimizer = make_settings_optimizer(settings)
            clip = settings.grad_clip
            try:
                return path, record_step(model, optimizer, path, batches, grad_clip=clip)
            except Exception:  # a model's code may fail in any way when called in parts
                if not kinds:
                    raise


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
        step.take([pair for batch in batches for pair in batch], number=0, lr=1e-6)

    return record(take, model, optimizer)


def replay(recording: Recording, model: nn.Module) -> Replay:
    """Replay a recording on a model."""
    graph, vocabulary = recording.graph, _vocabulary(model)
    # Gradients and updates are known by the shape of a matrix, logits by their width.
    matrices = {a.shape for a in graph.inputs if len(a.shape) > 1}
    for node in graph.nodes():
        for array in node.outputs:
            if array.shape in matrices:
                array.name = GRADIENTS
            elif len(array.shape) > 1 and array.shape[-1] == vocabulary:
                array.name = LOGITS
    weights, moments = recording.parameters, recording.moments
    for array in [*graph.inputs[: recording.num_parameters], *weights]:
        array.name = WEIGHTS
    for array in [*graph.inputs[recording.num_parameters :], *moments]:
        array.name = OPTIMIZER
    with uncollected():
        found = Replay(graph)
        found.run(recording.events)
    return found


def _parts(found: Replay) -> dict[str, int]:
    return {name: found.at_peak.get(name, 0) for name in PARTS}


def largest_batches(work: Workload, settings: Settings) -> list[list[PreferenceExample]]:
    """The micro-batches of a step that need most, the largest first; at most two are looked at."""
    sizes = lengths(work.examples)
    tokens = np.minimum(sizes[:, :1] + sizes[:, 1:], work.max_length)
    size = settings.batch_size
    order = EpochOrder(len(sizes), size, work.seed, lengths=sizes, micro_batch=size)
    count = min(work.epochs, _EPOCHS_LOOKED_AT) * order.batches_per_epoch
    if work.steps:
        count = min(count, work.steps * settings.grad_accumulation)
    found = by_need([order.next_batch() for _ in range(count)], tokens)
    return [
        [work.examples[row] for row in rows] for rows in found[: min(2, settings.grad_accumulation)]
    ]


def make_settings_optimizer(settings: Settings) -> optim.Optimizer:
    inner = make_optimizer(settings.optimizer, learning_rate=1e-6, weight_decay=0.0)
    return inner if settings.dtype == "float32" else StochasticRounding(inner, seed=0)


def _vocabulary(model: nn.Module) -> int:
    """Rows of the token embedding: a model's largest."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    return max((int(table.weight.shape[0]) for table in tables), default=0)
