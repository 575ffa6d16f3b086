"""What a run will hold at its peak, from shapes and lengths alone.

The peak is that of `mx.get_peak_memory()`: MLX's buffer cache and the rest of the process come on
top. It is looked for in a step of the largest micro-batch and in the self-check before the first
step; scoring, evaluation and sampling keep no gradient and stay below them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

from mlx_dpo.memory.check import replay_check
from mlx_dpo.memory.replay import OTHER, Replay
from mlx_dpo.memory.shapes import num_bytes
from mlx_dpo.memory.step import (
    GRADIENTS,
    LOGITS,
    OPTIMIZER,
    WEIGHTS,
    Batch,
    Step,
    replay_step,
    trace_step,
)
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.batches import EpochOrder, by_need
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import FastPath, PlainPath, ScoringPath

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
        """Bytes that it takes at any rate, found faster: what stays from step to step."""
        model = self._shell(settings.dtype)
        optimizer = _optimizer(settings)
        optimizer.init(model.trainable_parameters())
        state = sum(a.nbytes for a in named_arrays(optimizer.state).values())
        held = num_bytes(model) * (1 + (settings.reference == "copy")) + state
        return held if settings.plain else max(held, self._check(settings.dtype).peak)

    def _shell(self, dtype: str) -> nn.Module:
        if dtype not in self._shells:
            self._shells[dtype] = self.workload.shell(dtype)
        return self._shells[dtype]

    def _check(self, dtype: str) -> Replay:
        if dtype not in self._checks:
            work, model = self.workload, self._shell(dtype)
            path = PlainPath(work.max_length, work.pad_id)
            self._checks[dtype] = replay_check(model, work.examples, path, _vocabulary(model))
        return self._checks[dtype]

    def _predict(self, settings: Settings) -> Prediction:
        model = self._shell(settings.dtype)
        batches = largest_batches(self.workload, settings)
        path, step = self._traced(model, settings, batches)
        fused = settings.grad_clip == 0 and settings.grad_accumulation == 1
        found = replay_step(step, fused=fused, vocabulary=_vocabulary(model))
        count = sum(a.size for a in named_arrays(model.parameters()).values())
        sizes = [(len(p), len(c), len(r)) for p, c, r in batches[0]]
        return Prediction(settings, _parts(found), "a step", path.name, count, sizes)

    def _traced(
        self, model: nn.Module, settings: Settings, batches: Sequence[Batch]
    ) -> tuple[ScoringPath, Step]:
        """The fastest path whose step can be traced, as a run takes the fastest that works."""
        work, again = self.workload, settings.checkpoint_layers
        kinds: list[Callable[..., ScoringPath]] = [PlainPath]
        if not settings.plain:
            kinds = [FastPath, partial(FastPath, share_prompts=False), PlainPath]
        while True:
            path: ScoringPath = kinds.pop(0)(work.max_length, work.pad_id, again)
            optimizer = _optimizer(settings)
            try:
                step = trace_step(model, optimizer, path, batches, clip=settings.grad_clip > 0)
            except Exception:  # a model's code may fail in any way when called in parts
                if not kinds:
                    raise
            else:
                return path, step


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


def _optimizer(settings: Settings) -> optim.Optimizer:
    inner = make_optimizer(settings.optimizer, learning_rate=1e-6, weight_decay=0.0)
    return inner if settings.dtype == "float32" else StochasticRounding(inner, seed=0)


def _vocabulary(model: nn.Module) -> int:
    """Rows of the token embedding: a model's largest."""
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    return max((int(table.weight.shape[0]) for table in tables), default=0)
