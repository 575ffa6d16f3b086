"""One run: the only place that wires settings, data, trainer and files together."""

import math
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.optimizers import Optimizer

from mlx_dpo.convert.sources import load_folder
from mlx_dpo.errors import MlxDpoError, NonFiniteError, StoppedError
from mlx_dpo.files import check_writable, new_file, remove_abandoned, remove_leftovers
from mlx_dpo.models.device import tf32_enabled
from mlx_dpo.models.export import export_folder
from mlx_dpo.models.limits import limited_memory
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.preferences.chat import pad_id_of
from mlx_dpo.preferences.store import lengths
from mlx_dpo.runs import reference_cache
from mlx_dpo.runs.callbacks import (
    Clock,
    Evaluate,
    Pressure,
    Record,
    RewardWatch,
    Sample,
    Save,
    Screen,
    shown_answers,
)
from mlx_dpo.runs.checkpoint import (
    Checkpoints,
    Found,
    check_identity,
    check_room,
    restore,
    run_needs,
)
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.folder import (
    RunFolder,
    check_folders,
    check_ours,
    environment,
    given_run_dir,
    is_result_of,
    new_run_dir,
)
from mlx_dpo.runs.guards import Stop, locked, stop_on_signal
from mlx_dpo.runs.job import Job, prepare
from mlx_dpo.runs.machine import PressureWatch, Probe, keep_awake, read_pressure, shortage_explained
from mlx_dpo.runs.nonfinite import SkipNonFinite
from mlx_dpo.runs.reference_cache import cached_by_policy
from mlx_dpo.training.loss import pair_metrics
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import PlainPath, ScoringPath
from mlx_dpo.training.reference import Reference
from mlx_dpo.training.self_check import Choice, choose_path
from mlx_dpo.training.trainer import DPOTrainer

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BeforeAfter:
    """One prompt as answered before and after training."""

    prompt: str
    kind: str
    sft: str
    dpo: str


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves.

    Attributes:
        job: What it worked with; the policy is trained now.
        folder: The run's folder.
        policy: float32 (2, N), log-probs of the held-out pairs after training.
        reference: float32 (2, N), before training.
        answers: Some prompts, answered by both.
        totals: Sums over the steps of this process: seconds by phase, pairs, tokens.
        peak_bytes: Peak of MLX's memory.
    """

    job: Job
    folder: Path
    policy: Scores
    reference: Scores
    answers: list[BeforeAfter]
    totals: Mapping[str, float]
    peak_bytes: int


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    dry_run: bool = False,
    screen: Screen | None = None,
    probe: Probe = read_pressure,
) -> RunResult | None:
    """Run DPO from settings to a finished checkpoint.

    Args:
        config: The settings.
        resume: Go on from the newest checkpoint of ``config.run_dir``.
        dry_run: Check everything up to the first gradient, write nothing, and return.
        screen: Shows what happens.
        probe: Reads how much memory the machine has left.

    Returns:
        The result; None after a dry run.

    Raises:
        MlxDpoError: One of its kinds, each with its exit code; see `mlx_dpo.errors`.
    """
    screen = screen or Screen()
    mx.reset_peak_memory()
    check_folders(config)
    with stop_on_signal(screen.stopping) as stop, ExitStack() as held:
        held.enter_context(limited_memory())
        held.enter_context(shortage_explained(config))
        path = given_run_dir(config, resume=resume)
        if path is not None and not dry_run:  # before the data is read, which may take minutes
            held.enter_context(locked(path))
            check_ours(path, resume=resume)  # again: it may have begun and ended meanwhile
        with shortage_explained(config, loading=True):
            job = prepare(
                config, keep=not dry_run, tokenizing=screen.tokenizing, problems=screen.data_checked
            )
        if path is None and not dry_run:
            path = new_run_dir(job.name)
            held.enter_context(locked(path))
        if not dry_run:
            check_writable(job.out)
        checkpoints = Checkpoints(path or Path())
        found = checkpoints.newest_whole() if resume and path else Found(None, [])
        if found.path is not None:
            check_identity(found.path, job.identity())
        screen.prepared(job, path)
        for problem in found.problems:
            screen.warned(f"{problem}; going on from {found.path}, which is whole")
        path_choice = path_of(job)
        screen.path_chosen(path_choice)
        trainer = _trainer(job, path_choice.path, screen, stop, keep=not dry_run)
        check_room(run_needs(trainer, path or Path("runs"), job.out))
        sft_answers = [] if dry_run else shown_answers(job, stop)
        if found.path is not None:
            restore(found.path, trainer)
        else:
            _check_start(job, trainer, screen)
        if dry_run or path is None:
            return None
        folder = RunFolder(path)
        remove_leftovers(path)
        remove_abandoned(job.out)
        if found.path is None:
            _describe(job, folder)
        if resume:
            screen.resumed(trainer.step)
        folder.cut_to(trainer.step)
        with nullcontext() if config.allow_sleep else keep_awake():
            record, evaluate = _train(job, trainer, folder, screen, stop, checkpoints, probe)
            return finish(job, trainer, folder, stop, record, evaluate, sft_answers)


def _train(
    job: Job,
    trainer: DPOTrainer,
    folder: RunFolder,
    screen: Screen,
    stop: Stop,
    checkpoints: Checkpoints,
    probe: Probe,
) -> tuple[Record, Evaluate]:
    """Train to the last step; end earlier only with everything saved.

    Raises:
        StoppedError: If a signal came, or the machine runs out of memory.
        NonFiniteError: If a loss or gradient is not finite; nothing was applied.
        DiskError: If something can't be written.
    """
    record, evaluate = Record(folder, screen), Evaluate(job, folder, screen)
    save = Save(job, folder, checkpoints, stop)
    callbacks = [
        record,
        RewardWatch(screen),
        evaluate,
        Sample(job, folder, screen, stop),
        SkipNonFinite(job.train, job.config.skip_nonfinite, folder, screen),
        save,
        Pressure(PressureWatch(probe), screen),
        Clock(record),
    ]
    with stop.deferred():
        try:
            trainer.train(callbacks=callbacks)
        except StoppedError as error:
            raise save.stopped(trainer, error) from None
    return record, evaluate


def path_of(job: Job) -> Choice:
    """How the log-probs of a job are computed."""
    max_seq_len, pad_id = job.config.max_length, pad_id_of(job.chat.tokenizer)
    if job.config.plain:
        path = PlainPath(max_seq_len, pad_id, job.config.checkpoint_layers)
        return Choice(path, tf32=tf32_enabled())
    return choose_path(
        job.policy,
        job.train.examples,
        max_seq_len=max_seq_len,
        pad_id=pad_id,
        checkpoint=job.config.checkpoint_layers,
    )


def _trainer(job: Job, path: ScoringPath, screen: Screen, stop: Stop, *, keep: bool) -> DPOTrainer:
    if job.config.reference == "copy":
        return make_trainer(job, path, ref_model=load_folder(job.source, job.config.dtype)[0])
    return make_trainer(job, path, reference=cached_by_policy(job, path, screen, stop, keep=keep))


def make_trainer(
    job: Job,
    path: ScoringPath,
    *,
    ref_model: nn.Module | None = None,
    reference: Reference | None = None,
) -> DPOTrainer:
    """The trainer of a job, with one of the two sources of reference log-probs."""
    config = job.config
    return DPOTrainer(
        job.policy,
        ref_model=ref_model,
        reference=reference,
        examples=job.train.examples,
        max_seq_len=config.max_length,
        pad_id=pad_id_of(job.chat.tokenizer),
        beta=config.beta,
        batch_size=config.batch_size,
        grad_accumulation=config.grad_accumulation,
        max_steps=job.max_steps,
        max_lr=config.learning_rate,
        min_lr=config.min_learning_rate,
        warmup_steps=config.warmup_steps,
        optimizer=_make_optimizer(config),
        grad_clip=config.grad_clip or None,
        fused_update=config.grad_clip == 0,
        seed=config.seed,
        lengths=lengths(job.train.examples),
        path=path,
    )


def _make_optimizer(config: RunConfig) -> Optimizer:
    optimizer = make_optimizer(
        config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    if config.dtype == "float32":
        return optimizer
    return StochasticRounding(optimizer, seed=config.seed % 2**32)


def _check_start(job: Job, trainer: DPOTrainer, screen: Screen) -> None:
    start = trainer.check_start()
    if not (math.isfinite(start["loss"]) and math.isfinite(start["grad_norm"])):
        raise NonFiniteError(
            f"self-check: the loss starts at {start['loss']} with gradient norm "
            f"{start['grad_norm']}: the weights of {job.config.model} are not usable"
        )
    if start["largest_reward"] > start["allowed_reward"]:
        raise MlxDpoError(
            f"self-check: the loss starts at {start['loss']:.6f} and not at log 2 = 0.693147 "
            f"(largest reward {start['largest_reward']:.2g}): policy and reference differ before "
            f"the first update; nothing was trained. Delete {reference_cache.FOLDER} and try again"
        )
    if not start["grad_norm"] > 0:
        raise MlxDpoError("self-check: the gradient of the first pairs is zero: they teach nothing")
    screen.checked(job, start)


def _describe(job: Job, folder: RunFolder) -> None:
    folder.write_text("config.toml", job.config.to_toml())
    folder.write_json("environment.json", environment())
    folder.write_json("split.json", job.split())
    if job.data.log is not None:
        with new_file(folder.path / "problems.jsonl", replace=True) as file:
            file.write(job.data.log)


def _scores(job: Job, trainer: DPOTrainer) -> tuple[Scores, Scores]:
    if not job.held_out.examples:
        return np.zeros((2, 0), np.float32), np.zeros((2, 0), np.float32)
    return trainer.score_pairs(job.held_out.examples)


def finish(
    job: Job,
    trainer: DPOTrainer,
    folder: RunFolder,
    stop: Stop,
    record: Record,
    evaluate: Evaluate,
    sft_answers: list[str],
) -> RunResult:
    """Score the held-out pairs, answer once more, and write checkpoint and results.

    Args:
        job: What the run works with.
        trainer: After its last step.
        folder: The run's folder.
        stop: Looked at before each answer.
        record: Holds what the steps of this process took.
        evaluate: Holds the scores of the last step, where this process made them.
        sft_answers: What `shown_answers` returned before the first.

    Raises:
        MlxDpoError: If the reference has changed.
    """
    if trainer.ref_model is not None and fingerprint(trainer.ref_model) != job.weights:
        raise MlxDpoError("the reference changed during the run: its results can't be trusted")
    # A run that stopped between its last step and here is resumed with nothing left to train.
    policy, reference = evaluate.scores or _scores(job, trainer)
    dpo_answers = shown_answers(job, stop)
    answers = [
        BeforeAfter(row.question, row.kind, sft, dpo)
        for row, sft, dpo in zip(job.data.shown, sft_answers, dpo_answers, strict=True)
    ]
    held_out = {
        "ids": job.held_out.ids,
        "kinds": job.held_out.kinds,
        "reference": reference.tolist(),
        "policy": policy.tolist(),
    }
    results = pair_metrics(policy, reference, beta=job.config.beta) if policy.size else {}
    provenance = {
        "trained_from": {"model": str(job.config.model), "fingerprint": job.weights},
        "data": {"file": str(job.config.data), "digest": job.data.digest, "split": job.split()},
        "settings": asdict(job.config),
        "steps": trainer.step,
        "held_out": results,
        "environment": environment(),
    }
    # It is there where a run was killed right after this: a folder appears whole or not at all.
    if not is_result_of(job.config, job.out) or job.config.overwrite:
        export_folder(trainer.model, job.source, job.out, provenance, replace=job.config.overwrite)
    folder.write_json("held_out.json", held_out)
    # Last: its presence says that the run is finished.
    folder.write_json("result.json", {"out": str(job.out), "answers": [asdict(a) for a in answers]})
    return RunResult(
        job,
        folder.path,
        policy,
        reference,
        answers,
        record.totals,
        mx.get_peak_memory(),
    )
