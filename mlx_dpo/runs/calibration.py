"""How long an epoch will take, told from a few of its steps."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mlx_dpo.models.limits import limited_memory
from mlx_dpo.preferences.batches import EpochOrder
from mlx_dpo.preferences.examples import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.holding.shortage import shortage_explained
from mlx_dpo.runs.job import Job, prepare
from mlx_dpo.runs.meter import Meter
from mlx_dpo.runs.profiling import step_batches, with_reference
from mlx_dpo.runs.run import path_of
from mlx_dpo.training.paths import Path

_COUNTED = 256  # batches of an epoch whose tokens are counted; of more, so many evenly spaced


@dataclass(frozen=True)
class Calibration:
    """What a few steps say of all.

    Attributes:
        steps: Steps that were measured.
        steps_per_epoch: Optimizer steps of an epoch.
        step_seconds: Of one, on average over the epoch.
        reference_seconds: Of scoring every pair once, before the first step; 0 where each step
            scores its own by a frozen copy, which is in `step_seconds` then.
    """

    steps: int
    steps_per_epoch: int
    step_seconds: float
    reference_seconds: float

    @property
    def epoch_seconds(self) -> float:
        """Of one epoch, without the reference, evaluation, answers and saves."""
        return self.steps_per_epoch * self.step_seconds


def calibrate(config: RunConfig, *, steps: int = 3) -> Calibration:
    """Train a few steps in memory and take time to grow with the tokens that are computed.

    A first step, which has the largest batch, warms up and does not count. Nothing is written.

    Raises:
        MlxDpoError: One of its kinds, as for `runs.run.train`.
    """
    with limited_memory(), shortage_explained(config):
        job = prepare(config, keep=False)
        path = path_of(job).path
        chosen = step_batches(job, steps + 1)
        trainer = with_reference(job, path, chosen, Meter())
        trainer.max_steps = max(trainer.max_steps, len(chosen))
        training = scoring = 0.0
        for number, step in enumerate(chosen):
            begin = time.perf_counter()
            trainer.train_step([example for batch in step for example in batch])
            trained = time.perf_counter()
            for batch in step:
                mx.eval(trainer.score(trainer.model, batch))
            if number:
                training += trained - begin
                scoring += time.perf_counter() - trained
    measured = sum(_tokens(path, step) for step in chosen[1:])
    per_step, num_steps = _epoch(job, path)
    of_all = (len(job.train.examples) + len(job.held_out.examples)) / len(job.train.examples)
    each = per_step / measured
    cached = config.reference == "cached"
    return Calibration(
        steps=steps,
        steps_per_epoch=num_steps,
        step_seconds=each * training,
        reference_seconds=each * scoring * num_steps * of_all if cached else 0.0,
    )


def _tokens(path: Path, batches: Sequence[Sequence[PreferenceExample]]) -> int:
    return sum(path.work(batch).computed_tokens for batch in batches)


def _epoch(job: Job, path: Path) -> tuple[float, int]:
    """Tokens computed for a step, on average, and steps, of the first epoch."""
    config, examples = job.config, job.train.examples
    order = EpochOrder(
        len(examples),
        config.batch_size * config.grad_accumulation,
        config.seed,
        lengths=lengths(examples),
        micro_batch=config.batch_size,
    )
    batches = order.first_epoch()
    places = np.unique(np.linspace(0, len(batches) - 1, _COUNTED).astype(int))
    counted = _tokens(path, [[examples[row] for row in batches[i]] for i in places])
    return counted / len(places) * len(batches) / order.batches_per_epoch, order.batches_per_epoch
