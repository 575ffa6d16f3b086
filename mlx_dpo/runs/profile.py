"""A profile: a few steps of a real job, measured by phase; and how long an epoch will take.

Nothing is written, and nothing is kept.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.convert.sources import load_model
from mlx_dpo.memory.settings import Prediction
from mlx_dpo.models.adapters import adapter_parameters
from mlx_dpo.models.limits import limited_memory
from mlx_dpo.models.parameters import named_arrays, num_bytes
from mlx_dpo.preferences.batches import largest_batches
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.defaults import FULL, decided
from mlx_dpo.runs.folder import environment
from mlx_dpo.runs.job import Job, prepare
from mlx_dpo.runs.machine import shortage_explained
from mlx_dpo.runs.meter import Meter, footprint
from mlx_dpo.runs.plan import Plan, as_options, make_plan
from mlx_dpo.runs.trainer import make_trainer, path_of
from mlx_dpo.training.paths import ScoringPath
from mlx_dpo.training.reference import (
    adapter_off,
    cached_reference,
    reference_path,
    score_in_batches,
)
from mlx_dpo.training.trainer import DPOTrainer

SCHEMA = "mlx_dpo.profile/1"
STEP_PHASES = {"forward_backward": "backward", "update": "update", "reference": "reference"}
PHASES = {  # and what is done in them
    "load": "reading the pairs and the model",
    "reference": "scoring the reference",
    "check": "choosing the fastest way to score, and the self-check",
    "forward": "scoring a batch without a gradient",
    "backward": "computing gradients",
    "update": "updating the weights",
    "evaluation": "scoring held-out pairs",
}
_MAX_COUNTED = 256  # batches of an epoch whose tokens are counted; of more, so many evenly spaced
Batches = list[list[PreferenceExample]]  # the micro-batches of a step


@dataclass(frozen=True)
class Profile:
    """Time and memory of a few steps.

    Attributes:
        settings: Of the job.
        model: Its name.
        path: Name of the scoring path.
        steps: Steps that were run.
        pairs: Tokens of prompt, chosen and rejected response of each pair of the largest
            micro-batch.
        meter: Time and memory by phase, and samples.
        held: Bytes by component, exact from shapes; ``rest`` is what the peak of a step holds
            beside them: activations and logits.
        predicted: The plan's prediction for the same settings.
        levers: Predicted peak in bytes with one more setting changed, by the option as typed.
    """

    settings: RunConfig
    model: str
    path: str
    steps: int
    pairs: list[tuple[int, int, int]]
    meter: Meter
    held: dict[str, int]
    predicted: Prediction
    levers: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        """Most that MLX held at once, in any phase."""
        return max(phase.peak_bytes for phase in self.meter.phases.values())

    def as_json(self) -> dict[str, Any]:
        """All but the samples, as plain data: bytes and seconds."""
        phases = self.meter.phases
        alone = phases["backward"].seconds - phases["forward"].seconds
        return {
            "schema": SCHEMA,
            "model": self.model,
            "settings": asdict(self.settings),
            "path": self.path,
            "steps": self.steps,
            "largest_batch": self.pairs,
            "seconds": self.meter.seconds,
            "between_seconds": self.meter.between,
            "backward_without_forward_seconds": alone,
            "phases": {name: asdict(phases[name]) for name in PHASES if name in phases},
            "peak_bytes": self.peak_bytes,
            "held_bytes": self.held,
            "predicted_peak_bytes": self.predicted.total,
            "predicted_parts": self.predicted.parts,
            "levers_predicted_peak_bytes": self.levers,
            "measured_over_predicted": self.peak_bytes / self.predicted.total,
            "footprint": footprint()[1],
            "environment": environment(),
        }


def profile(
    config: RunConfig, *, steps: int, working: Callable[[str], None] = lambda what: None
) -> Profile:
    """Load, score the reference, check, train `steps` steps and evaluate, all in memory.

    The first step takes the batches of the first epoch that need most memory, the others the first
    ones in turn. Before each, its batches are scored once without a gradient: that is ``forward``,
    and no part of a run. ``backward`` is the gradient pass as training does it, its own forward
    included. Reference log-probs are computed for the pairs that are used, never read from an
    earlier run's. `working` is called with what begins, in words.

    Raises:
        MlxDpoError: One of its kinds, as for `runs.run.train`.
    """
    config = decided(config)
    meter = Meter(lambda phase: working(PHASES[phase]))
    with limited_memory(), shortage_explained(config), meter.running():
        with meter.phase("load"), shortage_explained(config, loading=True):
            job = prepare(config, keep=False)
        batches = _step_batches(job, steps)
        with meter.phase("check"):
            path = path_of(job).path
        trainer = _trainer(job, path, batches, meter)
        with meter.phase("check"):
            trainer.check_start()
        _run_steps(trainer, batches, meter)
        with meter.phase("evaluation"):
            trainer.score_pairs(_evaluated(job, batches))
    held = _held(trainer)
    at_peak = max(
        meter.phases[name].peak_bytes for name in ("backward", "update") if name in meter.phases
    )
    held["rest"] = max(0, at_peak - sum(held.values()))
    working("predicting the peak")
    plan = make_plan(config)
    return Profile(
        settings=config,
        model=job.name,
        path=path.name,
        steps=steps,
        pairs=[(len(p), len(c), len(r)) for p, c, r in batches[0][0]],
        meter=meter,
        held=held,
        predicted=plan.prediction,
        levers=_levers(plan),
    )


@dataclass(frozen=True)
class Calibration:
    """How long an epoch will take.

    Attributes:
        steps: Steps that were measured.
        steps_per_epoch: Optimizer steps of an epoch.
        step_seconds: Of one, on average over the epoch.
        reference_seconds: Of scoring every pair once, before the first step; 0 where each step
            scores its own by a frozen copy, which is then part of `step_seconds`.
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
    """Train a few steps in memory; time is taken to grow with the tokens that are computed.

    A first step, which has the largest batch, warms up and does not count. Nothing is written.

    Raises:
        MlxDpoError: One of its kinds, as for `runs.run.train`.
    """
    config = decided(config)
    with limited_memory(), shortage_explained(config):
        job = prepare(config, keep=False)
        path = path_of(job).path
        batches = _step_batches(job, steps + 1)
        trainer = _trainer(job, path, batches, Meter())
        trainer.max_steps = max(trainer.max_steps, len(batches))
        training = scoring = 0.0
        for number, step in enumerate(batches):
            begin = time.perf_counter()
            trainer.train_step(_pairs([step]))
            trained = time.perf_counter()
            for batch in step:
                mx.eval(trainer.score(trainer.model, batch))
            if number:
                training += trained - begin
                scoring += time.perf_counter() - trained
    steps_per_epoch = job.epoch_order().batches_per_epoch
    per_step = _tokens_of_epoch(job, path) / steps_per_epoch
    share = per_step / sum(_tokens(path, step) for step in batches[1:])
    all_pairs = len(job.examples) / len(job.train.examples)
    return Calibration(
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        step_seconds=share * training,
        reference_seconds=(
            share * scoring * steps_per_epoch * all_pairs if config.reference == "cached" else 0.0
        ),
    )


def _step_batches(job: Job, steps: int) -> list[Batches]:
    """Micro-batches of each step to run: the largest first, then those of the epoch in turn."""
    examples, per_step = job.train.examples, job.config.grad_accumulation
    epoch = job.epoch_order().first_epoch()[: job.max_steps * per_step]
    largest = largest_batches(epoch, lengths(examples), job.config.max_length, per_step)
    in_turn = [epoch[i : i + per_step] for i in range(0, len(epoch), per_step)]
    chosen = [largest, *(in_turn[i % len(in_turn)] for i in range(steps - 1))]
    return [[[examples[row] for row in rows] for rows in step] for step in chosen]


def _trainer(job: Job, path: ScoringPath, steps: list[Batches], meter: Meter) -> DPOTrainer:
    """The job's trainer, with reference log-probs for `steps` and their evaluation."""
    if job.config.reference == "copy":
        with meter.phase("reference"):
            copy = load_model(job.source, job.config.dtype)
            mx.eval(copy.parameters())
        return make_trainer(job, path, ref_model=copy)
    score = reference_path(path, float32=job.config.dtype == "float32")
    if job.config.reference == "adapters-off":
        return make_trainer(job, path, reference=adapter_off(job.policy, score))
    # The self-check takes the largest batches, which are those of the first step.
    pairs = _pairs(steps) + _evaluated(job, steps)
    unique = list({tuple(map(tuple, pair)): pair for pair in pairs}.values())
    with meter.phase("reference"):
        logprobs = score_in_batches(
            partial(score, job.reference_model), unique, batch_size=job.config.batch_size
        )
    return make_trainer(job, path, reference=cached_reference(unique, logprobs))


def _evaluated(job: Job, steps: list[Batches]) -> list[PreferenceExample]:
    """As many held-out pairs as a step has, or those of the first step."""
    count = job.config.batch_size * job.config.grad_accumulation
    return list(job.held_out.examples[:count]) or _pairs(steps[:1])


def _pairs(steps: list[Batches]) -> list[PreferenceExample]:
    return [example for step in steps for batch in step for example in batch]


def _run_steps(trainer: DPOTrainer, steps: list[Batches], meter: Meter) -> None:
    trainer.max_steps = max(trainer.max_steps, len(steps))
    for step in steps:
        for batch in step:
            with meter.phase("forward"):
                mx.eval(trainer.score(trainer.model, batch))
        trainer.stages.phases.around = lambda name: meter.phase(STEP_PHASES[name])
        trainer.train_step(_pairs([step]))


def _held(trainer: DPOTrainer) -> dict[str, int]:
    """Bytes held between steps by component, and of the gradients between backward and update."""
    trainable = named_arrays(trainer.model.trainable_parameters()).values()
    # Sums over several batches are kept in float32.
    gradients = sum(p.size * 4 if trainer.grad_accumulation > 1 else p.nbytes for p in trainable)
    reference = trainer.ref_model
    adapters = num_bytes(adapter_parameters(trainer.model))
    return {
        "weights": num_bytes(trainer.model.parameters()) - adapters,
        **({"adapters": adapters} if adapters else {}),
        "reference": 0 if reference is None else num_bytes(reference.parameters()),
        "optimizer": num_bytes(trainer.optimizer.state),
        "gradients": 0 if trainer.stages.fused and trainer.grad_accumulation == 1 else gradients,
    }


def _levers(plan: Plan) -> dict[str, int]:
    """Predicted peak under each single change that may lower it, by how it is typed."""
    now = plan.prediction.settings
    is_full = now.method == FULL
    changes: list[dict[str, Any]] = [
        *([] if now.reference == "adapters-off" else [{"reference": "cached"}]),
        {"checkpoint_layers": True},
        {"grad_clip": 0.0},
        {"batch_size": max(1, now.batch_size // 2)},
        *([{"optimizer": "adafactor"}, {"dtype": "bfloat16"}] if is_full else []),
    ]
    variants = {as_options(change): replace(now, **change) for change in changes}
    return {n: plan.predictor(other).total for n, other in variants.items() if other != now}


def _tokens(path: ScoringPath, batches: Sequence[Sequence[PreferenceExample]]) -> int:
    return sum(path.work(batch).computed_tokens for batch in batches)


def _tokens_of_epoch(job: Job, path: ScoringPath) -> float:
    """Tokens computed in the first epoch, estimated from some of its micro-batches."""
    epoch, examples = job.epoch_order().first_epoch(), job.train.examples
    counted = np.unique(np.linspace(0, len(epoch) - 1, _MAX_COUNTED).astype(int))
    batches = [[examples[row] for row in epoch[i]] for i in counted]
    return _tokens(path, batches) / len(counted) * len(epoch)
