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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mlx_dpo.files import make_folder, write_file
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.reference import example_digest

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
    device: Any = mx.default_device()
    for part in (model, path, SCORING_VERSION, version("mlx"), str(device), str(batch_size)):
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
