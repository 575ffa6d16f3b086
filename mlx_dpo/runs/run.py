"""One run: the only place that wires settings, data, trainer and files together."""

import math
from contextlib import ExitStack, nullcontext
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import Optimizer

from mlx_dpo.convert.sources import load_folder
from mlx_dpo.errors import MlxDpoError, NonFiniteError, UsageError
from mlx_dpo.files import check_writable, new_file, remove_leftovers
from mlx_dpo.models.limits import limited_memory
from mlx_dpo.preferences.chat import pad_id_of
from mlx_dpo.preferences.store import lengths
from mlx_dpo.runs import reference_cache
from mlx_dpo.runs.checkpoint import (
    Checkpoints,
    Found,
    check_identity,
    check_room,
    restore,
    run_needs,
)
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.folder import RunFolder, environment, new_run_dir
from mlx_dpo.runs.guards import NAME as LOCK
from mlx_dpo.runs.guards import Stop, check_free, locked, stop_on_signal
from mlx_dpo.runs.job import Job, check_folders, prepare
from mlx_dpo.runs.loop import Hooks, Loop
from mlx_dpo.runs.machine import Probe, keep_awake, read_pressure, shortage_explained
from mlx_dpo.runs.reference_cache import cached_by_policy
from mlx_dpo.runs.result import RunResult, finish, shown_answers
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import PlainPath, ScoringPath
from mlx_dpo.training.reference import Reference
from mlx_dpo.training.self_check import Choice, choose_path
from mlx_dpo.training.trainer import DPOTrainer


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    dry_run: bool = False,
    hooks: Hooks | None = None,
    probe: Probe = read_pressure,
) -> RunResult | None:
    """Run DPO from settings to a finished checkpoint.

    Args:
        config: The settings.
        resume: Go on from the newest checkpoint of ``config.run_dir``.
        dry_run: Check everything up to the first gradient, write nothing, and return.
        hooks: Told what happens.
        probe: Tells how much memory the machine has left.

    Returns:
        The result; None after a dry run.

    Raises:
        MlxDpoError: One of its kinds, each with its exit code; see `mlx_dpo.errors`.
    """
    hooks = hooks or Hooks()
    mx.reset_peak_memory()
    check_folders(config)
    with stop_on_signal(hooks.stopping) as stop, ExitStack() as held:
        held.enter_context(limited_memory())
        held.enter_context(shortage_explained(config))
        path = _given_run_dir(config, resume=resume)
        if path is not None and not dry_run:  # before the data is read, which may take minutes
            held.enter_context(locked(path))
            _check_ours(path, resume=resume)  # again: it may have begun and ended meanwhile
        with shortage_explained(config, loading=True):
            job = prepare(
                config, keep=not dry_run, tokenizing=hooks.tokenizing, problems=hooks.data_checked
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
        hooks.prepared(job, path)
        for problem in found.problems:
            hooks.warned(f"{problem}; going on from {found.path}, which is whole")
        path_choice = path_of(job)
        hooks.path_chosen(path_choice)
        trainer = _trainer(job, path_choice.path, hooks, stop, keep=not dry_run)
        check_room(run_needs(trainer, path or Path("runs"), job.out))
        sft_answers = [] if dry_run else shown_answers(job, stop)
        if found.path is not None:
            restore(found.path, trainer)
        else:
            _check_start(job, trainer, hooks)
        if dry_run or path is None:
            return None
        folder = RunFolder(path)
        remove_leftovers(path)
        if found.path is None:
            _describe(job, folder)
        if resume:
            hooks.resumed(trainer.step)
        folder.cut_to(trainer.step)
        loop = Loop(job, trainer, folder, hooks, stop, checkpoints, probe)
        with nullcontext() if config.allow_sleep else keep_awake():
            loop.run()
            return finish(loop, sft_answers)


def _given_run_dir(config: RunConfig, *, resume: bool) -> Path | None:
    """The folder that the settings name for the run, which must be free or its own."""
    if config.run_dir is None:
        return None
    path = Path(config.run_dir)
    check_free(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; --run-dir takes a folder")
    _check_ours(path, resume=resume)
    return path


def _check_ours(path: Path, *, resume: bool) -> None:
    if (path / "config.toml").exists() and not resume:
        raise UsageError(f"{path}: holds a run; pass --resume to continue it, or another one")
    others = path.is_dir() and any(entry.name != LOCK for entry in path.iterdir())
    if others and not (path / "config.toml").exists():
        raise UsageError(f"{path}: is not empty, and no run made it; choose another --run-dir")


def path_of(job: Job) -> Choice:
    """How the log-probs of a job are computed."""
    max_seq_len, pad_id = job.config.max_length, pad_id_of(job.chat.tokenizer)
    if job.config.plain:
        return Choice(PlainPath(max_seq_len, pad_id, job.config.checkpoint_layers))
    return choose_path(
        job.policy,
        job.train.examples,
        max_seq_len=max_seq_len,
        pad_id=pad_id,
        checkpoint=job.config.checkpoint_layers,
    )


def _trainer(job: Job, path: ScoringPath, hooks: Hooks, stop: Stop, *, keep: bool) -> DPOTrainer:
    if job.config.reference == "copy":
        return make_trainer(job, path, ref_model=load_folder(job.source, job.config.dtype)[0])
    return make_trainer(job, path, reference=cached_by_policy(job, path, hooks, stop, keep=keep))


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


def _check_start(job: Job, trainer: DPOTrainer, hooks: Hooks) -> None:
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
    hooks.checked(job, start)


def _describe(job: Job, folder: RunFolder) -> None:
    folder.write_text("config.toml", job.config.to_toml())
    folder.write_json("environment.json", environment())
    folder.write_json("split.json", job.split())
    if job.data.log is not None:
        with new_file(folder.path / "problems.jsonl", replace=True) as file:
            file.write(job.data.log)
