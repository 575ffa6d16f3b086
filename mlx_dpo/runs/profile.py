"""A few steps of a real job, measured by phase. Nothing is written, and nothing is kept."""

import re
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_dpo.convert.sources import load_folder
from mlx_dpo.memory.predict import Prediction
from mlx_dpo.models.limits import limited_memory
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.batches import EpochOrder, largest_batches
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.folder import environment
from mlx_dpo.runs.job import Job, prepare
from mlx_dpo.runs.machine import shortage_explained
from mlx_dpo.runs.plan import Plan, as_options, make_plan
from mlx_dpo.runs.run import make_trainer, path_of
from mlx_dpo.training.paths import ScoringPath
from mlx_dpo.training.reference import cached_reference, score_in_batches
from mlx_dpo.training.trainer import DPOTrainer

# --- Time and memory by phase, and memory sampled as time goes on.


SAMPLED_EVERY = 0.01  # seconds


@dataclass
class Phase:
    """What happened between the beginnings and ends of a phase.

    Attributes:
        seconds: Wall time, summed over the times it was entered.
        count: How often it was entered.
        peak_bytes: Most that MLX held at once within it.
        live_bytes: What MLX held at its last end.
        cache_bytes: Freed buffers that MLX kept at its last end.
        footprint_bytes: Memory of the whole process; see `footprint`.
    """

    seconds: float = 0.0
    count: int = 0
    peak_bytes: int = 0
    live_bytes: int = 0
    cache_bytes: int = 0
    footprint_bytes: int = 0


@dataclass(frozen=True)
class Sample:
    """Memory at a moment: seconds since the meter began, the phase, bytes MLX held."""

    seconds: float
    phase: str
    live_bytes: int


class Meter:
    """Measures phases. They don't nest, and they add up to `seconds` with what is `between` them.

    A thread samples while the meter runs: MLX computes without holding Python's lock.
    """

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}
        self.samples: list[Sample] = []
        self.seconds = 0.0
        self._began = 0.0
        self._now = "between"
        self._ended = threading.Event()

    @property
    def between(self) -> float:
        """Seconds outside every phase."""
        return self.seconds - sum(phase.seconds for phase in self.phases.values())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure what is inside, to the end."""
        self._began = time.perf_counter()
        sampler = threading.Thread(target=self._keep_sampling, daemon=True)
        sampler.start()
        try:
            yield
        finally:
            self.seconds = time.perf_counter() - self._began
            self._ended.set()
            sampler.join()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what is inside; entered again, times add up and the larger peak stays."""
        phase = self.phases.setdefault(name, Phase())
        mx.synchronize()
        mx.reset_peak_memory()
        self._now = name
        self._sample()
        start = time.perf_counter()
        yield
        mx.synchronize()
        phase.seconds += time.perf_counter() - start
        phase.count += 1
        # Nothing new may have been allocated, and what is held counts.
        phase.live_bytes = mx.get_active_memory()
        phase.peak_bytes = max(phase.peak_bytes, mx.get_peak_memory(), phase.live_bytes)
        phase.cache_bytes = mx.get_cache_memory()
        phase.footprint_bytes = footprint()[0]
        self._sample()
        self._now = "between"

    def _sample(self) -> None:
        passed = time.perf_counter() - self._began
        self.samples.append(Sample(passed, self._now, mx.get_active_memory()))

    def _keep_sampling(self) -> None:
        while not self._ended.wait(SAMPLED_EVERY):
            self._sample()


def footprint() -> tuple[int, str]:
    """Memory of this process in bytes, and which figure that is.

    Linux tells what is resident now; elsewhere the standard library knows only the largest so far.
    """
    if sys.platform == "linux":
        found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
        if found:
            return 1024 * int(found[1]), "resident now (VmRSS)"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024), "largest resident so far (ru_maxrss)"


SCHEMA = "mlx_dpo.profile/1"
STEP_PHASES = {"forward_backward": "backward", "update": "update", "reference": "reference"}
PHASES = ("load", "reference", "check", "forward", "backward", "update", "evaluation")
Batches = list[list[PreferenceExample]]


@dataclass(frozen=True)
class Profile:
    """What was measured.

    Attributes:
        settings: Of the job.
        model: Its name.
        path: How log-probs are computed.
        steps: Steps that were run.
        pairs: Of the largest micro-batch, tokens of each prompt, chosen and rejected response.
        meter: Time and memory by phase, and samples.
        held: Bytes by component, exact from shapes; ``rest`` is what the peak of a step holds
            beside them: activations and logits.
        predicted: Made by the plan after the measurement.
        levers: Predicted peak in bytes with one more setting changed, by how it is typed.
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


def profile(config: RunConfig, *, steps: int) -> Profile:
    """Load, score the reference, check, train `steps` steps and evaluate, all in memory.

    The first step takes the batch of the first epoch that needs most memory, the others the first
    ones in turn. Before each, its batches are scored once more without a gradient: that is
    ``forward``, and no part of a run. ``backward`` is the gradient pass as training does it, its
    own forward included. Reference log-probs are computed for the pairs that are used, never read
    from an earlier run's.

    Raises:
        MlxDpoError: One of its kinds, as for `runs.run.train`.
    """
    meter = Meter()
    with ExitStack() as inside:
        inside.enter_context(limited_memory())
        inside.enter_context(shortage_explained(config))
        inside.enter_context(meter.running())
        with meter.phase("load"), shortage_explained(config, loading=True):
            job = prepare(config, keep=False)
        chosen = step_batches(job, steps)
        with meter.phase("check"):
            path = path_of(job).path
        trainer = with_reference(job, path, chosen, meter)
        with meter.phase("check"):
            trainer.check_start()
        _run_steps(trainer, chosen, meter)
        with meter.phase("evaluation"):
            trainer.score_pairs(_evaluated(job, chosen))
    held = _held(trainer)
    at_peak = max(
        meter.phases[name].peak_bytes for name in ("backward", "update") if name in meter.phases
    )
    held["rest"] = max(0, at_peak - sum(held.values()))
    plan = make_plan(config)
    return Profile(
        settings=config,
        model=job.name,
        path=path.name,
        steps=len(chosen),
        pairs=[(len(p), len(c), len(r)) for p, c, r in chosen[0][0]],
        meter=meter,
        held=held,
        predicted=plan.prediction,
        levers=_levers(plan),
    )


def step_batches(job: Job, steps: int) -> list[Batches]:
    """Micro-batches of each step to run."""
    config, examples = job.config, job.train.examples
    sizes = lengths(examples)
    per_step = config.grad_accumulation
    order = EpochOrder(
        len(examples),
        config.batch_size * per_step,
        config.seed,
        lengths=sizes,
        micro_batch=config.batch_size,
    )
    batches = order.first_epoch()[: job.max_steps * per_step]
    largest = largest_batches(batches, sizes, config.max_length, per_step)
    in_turn = [batches[i : i + per_step] for i in range(0, len(batches), per_step)]
    return [
        [[examples[row] for row in rows] for rows in step]
        for step in [largest, *(in_turn[i % len(in_turn)] for i in range(steps - 1))]
    ]


def with_reference(job: Job, path: ScoringPath, chosen: list[Batches], meter: Meter) -> DPOTrainer:
    """The job's trainer, its reference made the way the settings say."""
    if job.config.reference == "copy":
        with meter.phase("reference"):
            copy = load_folder(job.source, job.config.dtype)[0]
            mx.eval(copy.parameters())
        return make_trainer(job, path, ref_model=copy)
    used = list(dict.fromkeys(map(_hashable, _pairs(chosen) + _evaluated(job, chosen))))
    # The self-check takes the largest batches, which are those of the first step.
    used_examples = [PreferenceExample(*map(list, pair)) for pair in used]
    with meter.phase("reference"):
        logprobs = score_in_batches(
            partial(path, job.policy), used_examples, batch_size=job.config.batch_size
        )
    return make_trainer(job, path, reference=cached_reference(used_examples, logprobs))


def _hashable(example: PreferenceExample) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(ids) for ids in example)


def _pairs(chosen: list[Batches]) -> list[PreferenceExample]:
    return [example for step in chosen for batch in step for example in batch]


def _evaluated(job: Job, chosen: list[Batches]) -> list[PreferenceExample]:
    """As many held-out pairs as a step has, or those of the first step."""
    count = job.config.batch_size * job.config.grad_accumulation
    held_out = job.held_out.examples
    return [held_out[i] for i in range(min(count, len(held_out)))] or _pairs(chosen[:1])


def _run_steps(trainer: DPOTrainer, chosen: list[Batches], meter: Meter) -> None:
    trainer.max_steps = max(trainer.max_steps, len(chosen))
    for step in chosen:
        for batch in step:
            with meter.phase("forward"):
                mx.eval(trainer.score(trainer.model, batch))
        trainer.stages.phases.around = lambda name: meter.phase(STEP_PHASES[name])
        trainer.train_step([example for batch in step for example in batch])


def _held(trainer: DPOTrainer) -> dict[str, int]:
    """Bytes held between steps by component, and of the gradients between backward and update."""
    trainable = named_arrays(trainer.model.trainable_parameters()).values()
    # Sums over several batches are kept in float32.
    gradients = sum(p.size * 4 if trainer.grad_accumulation > 1 else p.nbytes for p in trainable)
    reference = trainer.ref_model
    return {
        "weights": _bytes(trainer.model.parameters()),
        "reference": 0 if reference is None else _bytes(reference.parameters()),
        "optimizer": _bytes(trainer.optimizer.state),
        "gradients": 0 if trainer.stages.fused else gradients,
    }


def _levers(plan: Plan) -> dict[str, int]:
    """Predicted peak under each single change that may lower it, by how it is typed."""
    now = plan.prediction.settings
    changes: list[dict[str, Any]] = [
        {"reference": "cached"},
        {"checkpoint_layers": True},
        {"grad_clip": 0.0},
        {"batch_size": max(1, now.batch_size // 2)},
        {"optimizer": "adafactor"},
        {"dtype": "bfloat16"},
    ]
    tried = {as_options(change): replace(now, **change) for change in changes}
    return {n: plan.predictor(other).total for n, other in tried.items() if other != now}


def _bytes(tree: Any) -> int:
    return sum(array.nbytes for array in named_arrays(tree).values())


# --- How long an epoch will take, told from a few of its steps.


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


def _tokens(path: ScoringPath, batches: Sequence[Sequence[PreferenceExample]]) -> int:
    return sum(path.work(batch).computed_tokens for batch in batches)


def _epoch(job: Job, path: ScoringPath) -> tuple[float, int]:
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
