"""Reference log-probs on disk, so that a second run on the same model and data finds them.

A file is named by a hash of all its numbers depend on. Nothing in it is ever guessed: a file that
doesn't hold exactly the pairs asked for is not used.
"""

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mlx_dpo.files import write_file
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.reference import example_digest

SCORING_PATH = "plain-1"  # changes whenever the way of scoring changes a bit of a log-prob


def cache_file(
    parent: Path, weights: str, examples: Sequence[PreferenceExample], batch_size: int
) -> Path:
    """Where the log-probs of these pairs under these weights lie.

    Args:
        parent: The folder of all such files.
        weights: Fingerprint of the reference model.
        examples: The pairs, after truncation.
        batch_size: Pairs per forward; other shapes move a log-prob in its last bits.
    """
    digest = hashlib.sha256()
    device: Any = mx.default_device()
    for part in (weights, SCORING_PATH, version("mlx"), str(device), str(batch_size)):
        digest.update(f"{part}\n".encode())
    for example in examples:
        digest.update(example_digest(example))
    return parent / f"{digest.hexdigest()[:32]}.safetensors"


def read(file: Path, examples: Sequence[PreferenceExample]) -> npt.NDArray[np.float32] | None:
    """float32 (2, N) if the file holds these pairs, else None."""
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError):
        return None
    logprobs, pairs = tensors.get("logprobs"), tensors.get("pairs")
    if logprobs is None or pairs is None or not np.array_equal(pairs, _digests(examples)):
        return None
    if logprobs.shape != (2, len(examples)) or logprobs.dtype != np.float32:
        return None
    found: npt.NDArray[np.float32] = logprobs
    return found


def write(
    file: Path, examples: Sequence[PreferenceExample], logprobs: npt.NDArray[np.float32]
) -> None:
    """Keep the log-probs (2, N) of these pairs.

    Raises:
        DiskError: If the file can't be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, save({"logprobs": logprobs, "pairs": _digests(examples)}))


def _digests(examples: Sequence[PreferenceExample]) -> npt.NDArray[np.uint8]:
    joined = b"".join(map(example_digest, examples))
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(examples), 32)
