"""A few steps of a real job, measured by phase. Nothing is written, and nothing is kept."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_dpo.memory.predict import Prediction
from mlx_dpo.models.limits import limited_memory
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.batches import EpochOrder, largest_batches
from mlx_dpo.preferences.examples import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.folder import environment
from mlx_dpo.runs.holding.shortage import shortage_explained
from mlx_dpo.runs.job import Job, prepare
from mlx_dpo.runs.meter import Meter, footprint
from mlx_dpo.runs.planning import Plan, as_options, make_plan
from mlx_dpo.runs.run import make_trainer, path_of
from mlx_dpo.runs.sources import load_folder
from mlx_dpo.training.paths import Path
from mlx_dpo.training.reference import cached_reference, score_in_batches
from mlx_dpo.training.trainer import DPOTrainer

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


def with_reference(job: Job, path: Path, chosen: list[Batches], meter: Meter) -> DPOTrainer:
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
        trainer.phases.around = lambda name: meter.phase(STEP_PHASES[name])
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
        "gradients": 0 if trainer.fused_update else gradients,
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
