"""The reference's log-probs from the policy, while it is untrained and so is the reference."""

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from mlx_dpo.preferences.batches import ORDER, EpochOrder
from mlx_dpo.preferences.examples import lengths
from mlx_dpo.runs import reference_cache
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.keeping.signals import Stop
from mlx_dpo.runs.loop import Hooks
from mlx_dpo.training.paths import Path
from mlx_dpo.training.reference import Reference, cached_reference, score_in_batches


def cached_by_policy(job: Job, path: Path, hooks: Hooks, stop: Stop, *, keep: bool) -> Reference:
    """Reference log-probs of every pair: from disk, or computed now.

    Args:
        job: What the run works with; its policy is untrained.
        path: How log-probs are computed.
        hooks: Told how far it has come.
        stop: Looked at after every batch.
        keep: Whether a later run may find them.

    Raises:
        StoppedError: If a signal came.
        DiskError: If they can't be written.
    """
    examples, config = job.examples, job.config
    wide = config.dtype == "float32"
    name = path.name if wide else f"{path.name}, first epoch of seed {config.seed}, {ORDER}"
    file = reference_cache.cache_file(job.model, examples, config.batch_size, name)
    logprobs = reference_cache.read(file, examples)
    if logprobs is not None:
        hooks.reference_found(len(examples))
        return cached_reference(examples, logprobs)
    done = 0

    def after_batch(count: int) -> None:
        nonlocal done
        done += count
        hooks.scoring(done, len(examples))
        stop.check()

    logprobs = (
        _in_any_batches(job, path, after_batch) if wide else _in_its_batches(job, path, after_batch)
    )
    if keep:
        reference_cache.write(file, examples, logprobs)
    return cached_reference(examples, logprobs)


def _in_any_batches(
    job: Job, path: Path, after_batch: Callable[[int], None]
) -> npt.NDArray[np.float32]:
    """By length, whatever side of the split a pair is on: float32 forgives other shapes."""
    return score_in_batches(
        partial(path, job.policy),
        job.examples,
        batch_size=job.config.batch_size,
        after_batch=after_batch,
    )


def _in_its_batches(
    job: Job, path: Path, after_batch: Callable[[int], None]
) -> npt.NDArray[np.float32]:
    """In the batches that the first epoch and the evaluation score.

    bfloat16 rounds otherwise in other shapes, by tenths of a nat: so the loss starts at log 2.
    """
    size, parts = job.config.batch_size, []
    train, seed = job.train.examples, job.config.seed
    order = EpochOrder(len(train), size, seed, lengths=lengths(train))
    for pairs, batches in ((job.train, order.first_epoch()), (job.held_out, None)):
        if pairs.examples:
            parts.append(
                score_in_batches(
                    partial(path, job.policy),
                    pairs.examples,
                    batch_size=size,
                    batches=batches,
                    after_batch=after_batch,
                )
            )
    return np.concatenate(parts, axis=1)
