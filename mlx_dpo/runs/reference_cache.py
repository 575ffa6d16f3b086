"""Reference log-probs: computed by the untrained policy, kept on disk, found by the next run.

A file is named by a hash of all its numbers depend on. A file that doesn't hold exactly the pairs
asked for, undamaged, is not used.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mlx_dpo.files import make_folder, mark_used, write_file
from mlx_dpo.models.device import architecture, blas, tf32_enabled
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.batches import ORDER
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.defaults import LORA
from mlx_dpo.runs.folder import REFERENCES
from mlx_dpo.runs.guards import Stop
from mlx_dpo.runs.job import Job
from mlx_dpo.training.paths import ScoringPath
from mlx_dpo.training.peers import Alone, in_batches
from mlx_dpo.training.reference import (
    Reference,
    cached_reference,
    example_digest,
    reference_path,
    rows_by_length,
    score_in_batches,
)
from mlx_dpo.training.trainer import Scores

SCORING_VERSION = "5"  # changes whenever a way of scoring changes a bit of a log-prob


def cached_by_policy(
    job: Job, path: ScoringPath, screen: Screen, stop: Stop, *, keep: bool, peers: Alone
) -> Reference:
    """Reference log-probs of every pair: from disk, or computed now.

    Args:
        job: What the run works with; its policy is untrained.
        path: How log-probs are computed.
        screen: Shows the progress.
        stop: Checked after every batch.
        keep: Whether they are kept on disk for later runs.
        peers: Share the work; the first looks on its disk, and keeps them there.

    Raises:
        StoppedError: If a signal came.
        DiskError: If they can't be written.
    """
    examples, config = job.examples, job.config
    # TF32, where a user has turned it on, rounds otherwise in other shapes, as bfloat16 does.
    in_any_batches = config.dtype == "float32" and not tf32_enabled()
    name = path.key
    if not in_any_batches:
        name += f", first epoch of seed {config.seed}, {ORDER}"
        if job.config.method == LORA:
            # What has a gradient decides how MLX rounds the rest.
            trained = " ".join(named_arrays(job.policy.trainable_parameters()))
            name += f", {hashlib.sha256(trained.encode()).hexdigest()}"
        if peers.size > 1:
            name += f", shared by {peers.size}"
    file = cache_file(job.model_digest, examples, config.batch_size, name)
    batches = None if in_any_batches else _as_trained(job, peers)
    logprobs = peers.found(read(file, examples) if peers.rank == 0 else None, len(examples))
    if logprobs is not None:
        if peers.rank == 0:
            mark_used(file)
        screen.reference_found(len(examples))
        return cached_reference(examples, logprobs, batches or ())
    done = 0

    def after_batch(count: int) -> None:
        nonlocal done
        done += count
        screen.scoring(done, len(examples))
        stop.check()

    logprobs = score_in_batches(
        partial(reference_path(path, float32=config.dtype == "float32"), job.reference_model),
        examples,
        batch_size=config.batch_size,
        batches=batches,
        after_batch=after_batch,
        peers=peers,
    )
    if keep:
        write(file, examples, logprobs)
    return cached_reference(examples, logprobs, batches or ())


def _as_trained(job: Job, peers: Alone) -> list[list[int]]:
    """Exactly the batches that training and evaluation will use: indices of all pairs.

    In bfloat16 a pair's log-prob changes by tenths of a nat with the batch shape; equal shapes make
    the first loss exactly log 2.
    """
    pairs, order, size = job.train.examples, job.epoch_order(), job.config.batch_size
    batches = order.first_epoch()
    if peers.size > 1:
        batches = [
            [step[row] for row in rows]
            for step in order.first_epoch(order.batch_size)
            for share in peers.shares([pairs[row] for row in step])
            for rows in in_batches(share, size)
        ]
    held_out = rows_by_length(job.held_out.examples, size)
    return batches + [[len(pairs) + row for row in rows] for rows in held_out]


def cache_file(
    model_digest: str, examples: Sequence[PreferenceExample], batch_size: int, path: str
) -> Path:
    """The file for the log-probs of these pairs under this model.

    Args:
        model_digest: Of the reference model.
        examples: The pairs, after truncation.
        batch_size: Pairs per forward; the batch shape changes the last bits of a log-prob.
        path: Name of the scoring path, for the same reason.
    """
    digest = hashlib.sha256()
    # The device by its generation: every Mac calls its own `Device(gpu, 0)`.
    device = f"{mx.default_device()} {architecture()} TF32 {tf32_enabled()} {blas()}"
    parts = (model_digest, path, SCORING_VERSION, version("mlx"), device, str(batch_size))
    for part in parts:
        digest.update(f"{part}\n".encode())
    for example in examples:
        digest.update(example_digest(example))
    return REFERENCES / f"{digest.hexdigest()[:32]}.safetensors"


def read(file: Path, examples: Sequence[PreferenceExample]) -> Scores | None:
    """float32 (2, N) if the file holds these pairs and is undamaged, else None."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            checksum = (tensors.metadata() or {}).get("sha256")
            logprobs: Scores = tensors.get_tensor("logprobs")
            digests = tensors.get_tensor("pairs")
    except (OSError, SafetensorError):
        return None
    is_whole = checksum == _checksum(logprobs) and np.array_equal(digests, _digests(examples))
    return logprobs if is_whole else None


def write(file: Path, examples: Sequence[PreferenceExample], logprobs: Scores) -> None:
    """Keep the log-probs (2, N) of these pairs.

    Raises:
        DiskError: If the file can't be written.
    """
    make_folder(file.parent)
    tensors = {"logprobs": logprobs, "pairs": _digests(examples)}
    write_file(file, save(tensors, metadata={"sha256": _checksum(logprobs)}))


def _checksum(logprobs: Scores) -> str:
    """Of the numbers: every reader accepts a safetensors file with a flipped bit."""
    return hashlib.sha256(logprobs.tobytes()).hexdigest()


def _digests(examples: Sequence[PreferenceExample]) -> npt.NDArray[np.uint8]:
    joined = b"".join(map(example_digest, examples))
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(examples), 32)
