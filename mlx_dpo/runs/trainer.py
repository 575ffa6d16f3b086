"""The trainer of a job: how log-probs are computed, the reference, the optimizer."""

import mlx.nn as nn
from mlx.optimizers import Optimizer

from mlx_dpo.convert.sources import load_model
from mlx_dpo.models.device import on_gpu, tf32_enabled
from mlx_dpo.preferences.chat import pad_id_of
from mlx_dpo.preferences.store import lengths
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.defaults import LORA
from mlx_dpo.runs.group import compare_scoring
from mlx_dpo.runs.guards import Stop
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.reference_cache import cached_by_policy
from mlx_dpo.training.optimizers import StochasticRounding, make_optimizer
from mlx_dpo.training.paths import PlainPath, ScoringPath
from mlx_dpo.training.peers import Alone
from mlx_dpo.training.reference import Reference, adapter_off, reference_path
from mlx_dpo.training.self_check import Choice, choose_path
from mlx_dpo.training.trainer import DPOTrainer


def trainer_of(
    job: Job, screen: Screen, stop: Stop, *, keep: bool, peers: Alone | None = None
) -> DPOTrainer:
    """The trainer of a run, with its path and its reference log-probs.

    Args:
        job: What the run works with; its policy is untrained.
        screen: Shows the path and the progress of the reference pass.
        stop: Checked after every batch of that pass.
        keep: Whether reference log-probs are kept on disk for later runs.
        peers: The processes that make the run together; by default this one alone.

    Raises:
        UsageError: If ranks score by other paths.
        StoppedError: If a signal came.
        DiskError: If the reference log-probs can't be written.
    """
    screen.working("choosing the fastest way to score")
    choice = path_of(job)
    peers = peers or Alone()
    compare_scoring(peers, choice.path.key, screen)
    screen.path_chosen(choice)
    if job.config.reference == "copy":
        screen.working("loading the reference")
        copy = load_model(job.source, job.config.dtype)
        return make_trainer(job, choice.path, ref_model=copy, peers=peers)
    if job.config.reference == "adapters-off":
        score = reference_path(choice.path, float32=job.config.dtype == "float32")
        return make_trainer(job, choice.path, reference=adapter_off(job.policy, score), peers=peers)
    reference = cached_by_policy(job, choice.path, screen, stop, keep=keep, peers=peers)
    return make_trainer(job, choice.path, reference=reference, peers=peers)


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


def make_trainer(
    job: Job,
    path: ScoringPath,
    *,
    ref_model: nn.Module | None = None,
    reference: Reference | None = None,
    peers: Alone | None = None,
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
        peers=peers,
    )


def _make_optimizer(config: RunConfig) -> Optimizer:
    optimizer = make_optimizer(
        config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        compiled=on_gpu(),
    )
    if config.dtype == "float32" or config.method == LORA:  # adapters are float32
        return optimizer
    return StochasticRounding(optimizer, seed=config.seed % 2**32)
