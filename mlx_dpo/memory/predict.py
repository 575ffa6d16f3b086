"""The peak memory of a run, from shapes and lengths alone.

The peak is that of `mx.get_peak_memory()`: MLX's buffer cache and the rest of the process come on
top. It is the largest of a step with the largest micro-batch and of the self-check before the first
step; scoring, evaluation and sampling keep no gradient and stay below them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_dpo.memory.graph import uncollected
from mlx_dpo.memory.recorder import NUMBERS, Recorder, Recording, record
from mlx_dpo.memory.replay import OTHER, Replay
from mlx_dpo.models.adapters import (
    RANK,
    Adapter,
    adapted_modules,
    attach,
    base_parameters,
    choose_modules,
    new_adapter,
    wrapped_module,
)
from mlx_dpo.models.device import on_gpu
from mlx_dpo.models.packed import is_packed, num_parameters
from mlx_dpo.models.parameters import named_arrays, num_bytes
from mlx_dpo.models.parts import is_embedding
from mlx_dpo.preferences.batches import EpochOrder, by_need
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.layout import Work
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.self_check import PlainValues
from mlx_dpo.training.step import Batch, Step

WEIGHTS, OPTIMIZER, GRADIENTS, LOGITS = "weights", "optimizer state", "gradients", "logits"
REFERENCE, ADAPTERS, UNPACKED = "reference", "adapters", "unpacked weights"
STEP, SELF_CHECK = "a step", "the self-check before the first step"
PARTS = (WEIGHTS, ADAPTERS, REFERENCE, OPTIMIZER, GRADIENTS, OTHER, LOGITS, UNPACKED)
_OF_SOME = (ADAPTERS, UNPACKED)  # parts that are named only where there are any
Parts = dict[str, int]  # bytes by name
_UNPACKED, _UNPACKED_OF_HALF = 7, 8  # of the largest matrix, as float32, on a CPU
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
    method: str = "full"
    lora_rank: int | None = None
    lora_layers: int | None = None
    lora_modules: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the whole gradient is there before any of it is used."""
        return self.grad_clip > 0 or self.grad_accumulation > 1

    @property
    def of_model(self) -> "Settings":
        """What of them decides the policy's arrays; the rest is as by default."""
        names = ("dtype", "method", "lora_rank", "lora_layers", "lora_modules")
        return Settings(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Workload:
    """What is trained on what.

    Attributes:
        shell: Makes the model from shapes, in a dtype named as in `Settings`.
        examples: Training pairs.
        max_length: Longest prompt + response in tokens.
        pad_id: Token id to pad with.
        seed: Decides which pairs meet in a batch.
        epochs: Times each pair is seen.
        steps: Optimizer steps, where fewer.
        adapter: Makes the adapter that training starts from, for a model from shapes; None for a
            new one, as the settings say.
    """

    shell: Callable[[str], nn.Module]
    examples: Sequence[PreferenceExample]
    max_length: int
    pad_id: int
    seed: int = 0
    epochs: int = 1
    steps: int | None = None
    adapter: Callable[[nn.Module], Adapter] | None = None


@dataclass(frozen=True)
class Prediction:
    """The peak of a run.

    Attributes:
        settings: For which it is.
        parts: Bytes at that moment by name, in the order of `PARTS`; they add up to the total.
        moment: When it is: in a step, or in the self-check.
        path: How log-probs are computed.
        num_parameters: Of the policy; a quantised weight counts as one.
        num_trained: Of these, parameters that are trained.
        pairs: Of the largest micro-batch, tokens of each prompt, chosen and rejected response.
    """

    settings: Settings
    parts: Parts
    moment: str
    path: str
    num_parameters: int
    num_trained: int
    pairs: list[tuple[int, int, int]]

    @property
    def total(self) -> int:
        """Predicted peak in bytes."""
        return total(self.parts)

    @property
    def on_gpu(self) -> int:
        """The same where packed weights are multiplied as they are, which a CPU does not do."""
        return self.total - self.parts.get(UNPACKED, 0)


class Predictor:
    """Predicts for one workload; what was traced before is remembered.

    A step that makes the whole gradient before it uses any has two parts: no optimizer changes the
    first, and no batch the second. They are traced apart, and so once for many settings.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self._traced: dict[tuple[str, Settings], tuple[Parts, str]] = {}
        self._batches: dict[tuple[int, int], list[list[PreferenceExample]]] = {}
        self._shells: dict[Settings, nn.Module] = {}
        self._states: dict[Settings, int] = {}

    def __call__(self, settings: Settings) -> Prediction:
        """The peak under these settings."""
        moment, parts = max(self.moments(settings), key=lambda each: total(each[1]))
        model = self.shell(settings)
        return Prediction(
            settings,
            {n: parts.get(n, 0) for n in PARTS if n in parts or n not in _OF_SOME},
            moment,
            self._step(settings)[1],
            num_parameters=num_parameters(model),
            num_trained=sum(a.size for a in named_arrays(model.trainable_parameters()).values()),
            pairs=[(len(p), len(c), len(r)) for p, c, r in self._largest(settings)[0]],
        )

    def bounds(self, settings: Settings) -> Iterator[int]:
        """Lower bounds of the peak in bytes, cheap ones first; the largest of them is the peak."""
        yield total(self._held(settings))
        for _, parts in self.moments(settings):
            yield total(parts)

    def shell(self, settings: Settings) -> nn.Module:
        """The policy, its parameters never evaluated."""
        key = settings.of_model
        if key not in self._shells:
            model = self.workload.shell(settings.dtype)
            if settings.method == "lora":
                make = self.workload.adapter or partial(_new_adapter, settings=settings)
                attach(model, make(model))
            self._shells[key] = model
        return self._shells[key]

    def moments(self, settings: Settings) -> Iterator[tuple[str, Parts]]:
        """The peaks of a run's beginning, each with its moment, what is cheap to trace first."""
        unpacked = _unpacked(self.shell(settings))
        for moment, parts in self._packed_moments(settings):
            yield moment, parts | unpacked

    def _packed_moments(self, settings: Settings) -> Iterator[tuple[str, Parts]]:
        copied = {REFERENCE: _num_base_bytes(self.shell(settings))}
        beside = copied if settings.reference == "copy" else {}
        if settings.is_whole:
            yield STEP, self._update(settings)[0] | beside
            beside = beside | {OPTIMIZER: self._state(settings)}
        if not settings.plain:
            yield SELF_CHECK, self._check(settings)[0]
        yield STEP, self._step(settings)[0] | beside

    def _held(self, settings: Settings) -> Parts:
        """What is held at once in any case: between steps, or before an update."""
        model = self.shell(settings)
        held = {WEIGHTS: num_bytes(model.parameters()), OPTIMIZER: self._state(settings)}
        if settings.reference == "copy":
            held[REFERENCE] = _num_base_bytes(model)
        if settings.is_whole:
            trainable = named_arrays(model.trainable_parameters()).values()
            summed = settings.grad_accumulation > 1  # in float32
            held[GRADIENTS] = sum(a.size * (4 if summed else a.itemsize) for a in trainable)
        return held

    def _update(self, settings: Settings) -> tuple[Parts, str]:
        """Peak of the update once the gradient is whole; any gradient will do."""
        clip = float(settings.grad_clip > 0)
        key = replace(settings.of_model, optimizer=settings.optimizer, grad_clip=clip)

        def trace() -> tuple[Parts, str]:
            model, path = self.shell(settings), _SquaresPath()
            # The second of two batches is there for a step without clipping to be whole.
            batches = [self.workload.examples[:1]] * (1 if clip else 2)
            recording = record_step(model, optimizer_of(settings), path, batches, grad_clip=clip)
            return _peak(recording, model, slice(recording.updated_at, None)), path.name

        return self._once("update", key, trace)

    def _step(self, settings: Settings) -> tuple[Parts, str]:
        """Peak of a step up to its update, or of all of it where it is never whole; and its path.

        It is the fastest path whose step can be traced, as a run takes the fastest that works.
        """
        key = replace(settings, reference="cached")
        if settings.is_whole:
            key = replace(key, optimizer="adamw", grad_clip=1.0)
        work, again = self.workload, settings.checkpoint_layers

        def trace() -> tuple[Parts, str]:
            model, batches = self.shell(settings), self._largest(settings)
            kinds: list[Callable[..., ScoringPath]] = [PlainPath]
            if not settings.plain:
                others = {"one_length": True}, {"share_prompts": False}
                kinds = [FastPath, *(partial(FastPath, **how) for how in others), PlainPath]
            while True:
                path: ScoringPath = kinds.pop(0)(work.max_length, work.pad_id, again)
                # Where the optimizer comes after the peak, any will do.
                optimizer = optim.SGD(1e-6) if settings.is_whole else optimizer_of(settings)
                try:
                    recording = record_step(
                        model, optimizer, path, batches, grad_clip=settings.grad_clip
                    )
                    end = recording.updated_at if settings.is_whole else None
                    return _peak(recording, model, slice(end)), path.name
                except Exception:  # a model's code may fail in any way when called in parts
                    if not kinds:
                        raise

        return self._once("step", key, trace)

    def _check(self, settings: Settings) -> tuple[Parts, str]:
        """Peak of the self-check: the plain path's part of it, since fast paths hold less.

        Of adapters the plain path scores row by row, and the fast path's part may be the larger.
        """
        model, work = self.shell(settings), self.workload
        plain = PlainPath(work.max_length, work.pad_id)

        def trace(path: ScoringPath) -> tuple[Parts, str]:
            recording = record(lambda r: PlainValues(path, model, work.examples, r), model)
            return _peak(recording, model), path.name

        found = self._once("check", settings.of_model, lambda: trace(plain))
        if settings.method != "lora":
            return found
        again = settings.checkpoint_layers
        key = replace(settings.of_model, checkpoint_layers=again)
        fast = FastPath(work.max_length, work.pad_id, again)
        try:
            other = self._once("fast check", key, lambda: trace(fast))
        except Exception:  # a model's code may fail in any way when called in parts
            return found
        return max(found, other, key=lambda each: total(each[0]))

    def _once(
        self, name: str, key: Settings, trace: Callable[[], tuple[Parts, str]]
    ) -> tuple[Parts, str]:
        if (name, key) not in self._traced:
            with uncollected():
                self._traced[name, key] = trace()
        return self._traced[name, key]

    def _largest(self, settings: Settings) -> list[list[PreferenceExample]]:
        key = (settings.batch_size, settings.grad_accumulation)
        if key not in self._batches:
            self._batches[key] = largest_batches(self.workload, settings)
        return self._batches[key]

    def _state(self, settings: Settings) -> int:
        """Bytes of the optimizer's state."""
        key = replace(settings.of_model, optimizer=settings.optimizer)
        if key not in self._states:
            optimizer = optimizer_of(settings)
            optimizer.init(self.shell(settings).trainable_parameters())
            moments = named_arrays(optimizer.state).items()
            self._states[key] = sum(a.nbytes for name, a in moments if name not in NUMBERS)
        return self._states[key]


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


def _peak(recording: Recording, model: nn.Module, within: slice = slice(None)) -> Parts:
    """Bytes by name at the peak of a recording, within some of its events."""
    replay = begin_replay(recording, model)
    replay.run(recording.events[: within.start or 0])
    replay.forget_peak()
    replay.run(recording.events[within])
    return replay.at_peak


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


@dataclass(frozen=True)
class _SquaresPath:
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


def total(parts: Parts) -> int:
    """Bytes of all parts."""
    return sum(parts.values())


def optimizer_of(settings: Settings) -> optim.Optimizer:
    """The optimizer of a run with these settings."""
    inner = make_optimizer(settings.optimizer, learning_rate=1e-6, weight_decay=0.0)
    # Adapters are float32 whatever their base is.
    is_wide = settings.dtype == "float32" or settings.method == "lora"
    return inner if is_wide else StochasticRounding(inner, seed=0)


def _new_adapter(model: nn.Module, settings: Settings) -> Adapter:
    """The adapter a run begins with, its values never evaluated."""
    paths = choose_modules(model, settings.lora_modules or "all", settings.lora_layers)
    return new_adapter(model, paths, rank=settings.lora_rank or RANK)


def _unpacked(model: nn.Module) -> Parts:
    """What a CPU holds of weights that are unpacked for each product, where a model has any.

    A product's matrix lives as long as what was scheduled before it, and each chunk of the output
    layer, the largest, makes it anew. How many there are at a time is an estimate from small
    models, where 0.7 to 1.1 of the peak with it was measured.
    """
    packed = [module for module in model.modules() if is_packed(module)]
    if on_gpu() or not packed:
        return {}
    halved = any(module.scales.dtype != mx.float32 for module in packed)
    largest = max(module.weight.size * 32 // module.bits for module in packed)
    return {UNPACKED: (_UNPACKED_OF_HALF if halved else _UNPACKED) * 4 * largest}


def _num_base_bytes(model: nn.Module) -> int:
    """Bytes of a model without its adapter: what a second one takes as reference."""
    return sum(array.nbytes for array in base_parameters(model).values())


def _vocabulary(model: nn.Module) -> int:
    """Rows of the token embedding: a model's largest."""
    tables = [wrapped_module(m) for m in model.modules() if is_embedding(m)]
    return max((int(table.weight.shape[0]) for table in tables), default=0)
