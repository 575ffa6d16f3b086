"""The peak memory of a run, from shapes and lengths alone.

The peak is that of `mx.get_peak_memory()`: MLX's buffer cache and the rest of the process come on
top. It is the largest of a step with the largest micro-batch and of the self-check before the first
step; scoring, evaluation and sampling keep no gradient and stay below them.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

from mlx_dpo.memory.graph import uncollected
from mlx_dpo.memory.recorder import NUMBERS, record
from mlx_dpo.memory.settings import (
    ADAPTERS,
    GRADIENTS,
    OPTIMIZER,
    PARTS,
    REFERENCE,
    UNPACKED,
    WEIGHTS,
    Parts,
    Prediction,
    Settings,
    Workload,
    total,
)
from mlx_dpo.memory.trace import SquaresPath, largest_of, optimizer_of, peak_of, record_step
from mlx_dpo.models.adaptable import choose_modules
from mlx_dpo.models.adapters import RANK, Adapter, attach, base_parameters, new_adapter
from mlx_dpo.models.device import on_gpu
from mlx_dpo.models.packed import is_packed, num_parameters
from mlx_dpo.models.parameters import named_arrays, num_bytes
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath
from mlx_dpo.training.self_check import PlainValues

STEP, SELF_CHECK = "a step", "the self-check before the first step"
_OF_SOME = (ADAPTERS, UNPACKED)  # parts that are named only where there are any
_UNPACKED, _UNPACKED_OF_HALF = 7, 8  # of the largest matrix, as float32, on a CPU


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
            model, path = self.shell(settings), SquaresPath()
            # The second of two batches is there for a step without clipping to be whole.
            batches = [self.workload.examples[:1]] * (1 if clip else 2)
            recording = record_step(model, optimizer_of(settings), path, batches, grad_clip=clip)
            return peak_of(recording, model, slice(recording.updated_at, None)), path.name

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
                    return peak_of(recording, model, slice(end)), path.name
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
            return peak_of(recording, model), path.name

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
            self._batches[key] = largest_of(self.workload, settings)
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
