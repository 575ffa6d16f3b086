"""Reference log-probs on disk, so that a second run on the same model and data finds them.

A file is named by a hash of all its numbers depend on. Nothing in it is ever guessed: a file that
doesn't hold exactly the pairs asked for is not used.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mlx_dpo.files import make_folder, write_file
from mlx_dpo.models.device import architecture, tf32_enabled
from mlx_dpo.preferences.batches import ORDER, EpochOrder
from mlx_dpo.preferences.store import lengths
from mlx_dpo.records import PreferenceExample
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.guards import Stop
from mlx_dpo.runs.job import Job
from mlx_dpo.training.paths import ScoringPath
from mlx_dpo.training.reference import Reference, cached_reference, example_digest, score_in_batches

FOLDER = Path("runs/.reference")  # one for all runs, so that they share it
SCORING_VERSION = "2"  # changes whenever a way of scoring changes a bit of a log-prob


def cache_file(
    model: str, examples: Sequence[PreferenceExample], batch_size: int, path: str
) -> Path:
    """Where the log-probs of these pairs under this model lie.

    Args:
        model: Digest of the reference model.
        examples: The pairs, after truncation.
        batch_size: Pairs per forward; other shapes move a log-prob in its last bits.
        path: Name of the scoring path, for the same reason.
    """
    digest = hashlib.sha256()
    # The device by its generation: every Mac calls its own `Device(gpu, 0)`.
    device = f"{mx.default_device()} {architecture()} TF32 {tf32_enabled()}"
    for part in (model, path, SCORING_VERSION, version("mlx"), device, str(batch_size)):
        digest.update(f"{part}\n".encode())
    for example in examples:
        digest.update(example_digest(example))
    return FOLDER / f"{digest.hexdigest()[:32]}.safetensors"


def read(file: Path, examples: Sequence[PreferenceExample]) -> npt.NDArray[np.float32] | None:
    """float32 (2, N) if the file holds these pairs and is undamaged, else None."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            checksum = (tensors.metadata() or {}).get("sha256")
            logprobs, pairs = tensors.get_tensor("logprobs"), tensors.get_tensor("pairs")
    except (OSError, SafetensorError):
        return None
    found: npt.NDArray[np.float32] = logprobs
    if checksum != _checksum(found) or not np.array_equal(pairs, _digests(examples)):
        return None
    return found


def write(
    file: Path, examples: Sequence[PreferenceExample], logprobs: npt.NDArray[np.float32]
) -> None:
    """Keep the log-probs (2, N) of these pairs.

    Raises:
        DiskError: If the file can't be written.
    """
    make_folder(file.parent)
    tensors = {"logprobs": logprobs, "pairs": _digests(examples)}
    write_file(file, save(tensors, metadata={"sha256": _checksum(logprobs)}))


def _checksum(logprobs: npt.NDArray[np.float32]) -> str:
    """One flipped bit in a safetensors file is accepted by every reader."""
    return hashlib.sha256(logprobs.tobytes()).hexdigest()


def _digests(examples: Sequence[PreferenceExample]) -> npt.NDArray[np.uint8]:
    joined = b"".join(map(example_digest, examples))
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(examples), 32)


# --- The reference's log-probs from the policy, while it is untrained and
# so is the reference.


def cached_by_policy(
    job: Job, path: ScoringPath, screen: Screen, stop: Stop, *, keep: bool
) -> Reference:
    """Reference log-probs of every pair: from disk, or computed now.

    Args:
        job: What the run works with; its policy is untrained.
        path: How log-probs are computed.
        screen: Shows how far it has come.
        stop: Looked at after every batch.
        keep: Whether a later run may find them.

    Raises:
        StoppedError: If a signal came.
        DiskError: If they can't be written.
    """
    examples, config = job.examples, job.config
    # TF32, where a user has turned it on, rounds otherwise in other shapes, as bfloat16 does.
    wide = config.dtype == "float32" and not tf32_enabled()
    name = path.name if wide else f"{path.name}, first epoch of seed {config.seed}, {ORDER}"
    file = cache_file(job.model, examples, config.batch_size, name)
    logprobs = read(file, examples)
    if logprobs is not None:
        screen.reference_found(len(examples))
        return cached_reference(examples, logprobs)
    done = 0

    def after_batch(count: int) -> None:
        nonlocal done
        done += count
        screen.scoring(done, len(examples))
        stop.check()

    logprobs = (
        _in_any_batches(job, path, after_batch) if wide else _in_its_batches(job, path, after_batch)
    )
    if keep:
        write(file, examples, logprobs)
    return cached_reference(examples, logprobs)


def _in_any_batches(
    job: Job, path: ScoringPath, after_batch: Callable[[int], None]
) -> npt.NDArray[np.float32]:
    """By length, whatever side of the split a pair is on: float32 forgives other shapes."""
    return score_in_batches(
        partial(path, job.policy),
        job.examples,
        batch_size=job.config.batch_size,
        after_batch=after_batch,
    )


def _in_its_batches(
    job: Job, path: ScoringPath, after_batch: Callable[[int], None]
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
