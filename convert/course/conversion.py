"""A whole conversion of a course model: artifact to MLX folder, or back."""

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.course.artifact import (
    CourseCheckpoint,
    load_course_tokenizer,
    read_artifact,
    read_course_folder,
    write_artifact,
    write_course_folder,
)
from mlx_dpo.convert.course.files import MODEL
from mlx_dpo.convert.course.params import params_to_mlx
from mlx_dpo.convert.options import Options, Say
from mlx_dpo.convert.torch_zip.archive import read_torch_zip
from mlx_dpo.convert.verify import compare, token_batch
from mlx_dpo.convert.weights import cast, dtype_names, largest_change, num_parameters
from mlx_dpo.errors import MlxDpoError
from mlx_dpo.files import new_folder
from mlx_dpo.models.course import CourseArgs, CourseModel
from mlx_dpo.models.parameters import same_bits


def to_mlx(source: Path, destination: Path, options: Options, say: Say) -> None:
    """Convert an artifact to an MLX folder.

    Raises:
        UsageError: If the artifact is not as it must be.
        MlxDpoError: If the proof fails; nothing is left then.
        DiskError: If the disk does not take it.
    """
    checkpoint = _ready(read_artifact(source), options, say)
    with new_folder(destination, replace=options.overwrite) as folder:
        write_course_folder(checkpoint, folder)
        if options.verify:
            written = read_course_folder(folder).arrays
            _compare(checkpoint.arrays, written)
            say(_proof(checkpoint))
            exact = options.dtype is None
            say(check_logits(source / MODEL, written, checkpoint.args, folder, exact=exact))


def to_torch(source: Path, destination: Path, options: Options, say: Say) -> None:
    """Convert an MLX folder of a course model back to an artifact.

    Raises:
        UsageError: If the folder is not as it must be.
        MlxDpoError: If the proof fails; nothing is left then.
        DiskError: If the disk does not take it.
    """
    checkpoint = _ready(read_course_folder(source), options, say)
    with new_folder(destination, replace=options.overwrite) as folder:
        name = write_artifact(checkpoint, folder)
        file = folder / "model.pt"
        if options.verify:
            params = read_torch_zip(file)["params"]
            _compare(checkpoint.arrays, params_to_mlx(params, checkpoint.args, file))
            say(_proof(checkpoint))
            exact = options.dtype is None
            before = read_course_folder(source).arrays
            say(check_logits(file, before, checkpoint.args, source, exact=exact))
    say(f"the course looks for it as artifacts/models/{name}")


def _ready(checkpoint: CourseCheckpoint, options: Options, say: Say) -> CourseCheckpoint:
    arrays = checkpoint.arrays
    say(f"{' and '.join(dtype_names(arrays))}, {num_parameters(arrays):,} parameters")
    ready = cast(arrays, options.mlx_dtype)
    if options.mlx_dtype is not None:
        change = max(largest_change(arrays[name], ready[name]) for name in arrays)
        say(f"cast to {options.dtype}: largest change of a weight {change:.1e}")
    return replace(checkpoint, arrays=ready)


def _compare(expected: Mapping[str, mx.array], found: Mapping[str, mx.array]) -> None:
    for name, value in expected.items():
        if name not in found or not same_bits(value, found[name]):
            raise MlxDpoError(f"{name}: is not the same after conversion there and back")


def _proof(checkpoint: CourseCheckpoint) -> str:
    return f"weights: there and back is bit-identical, all {len(checkpoint.arrays)} tensors"


# --- Asking PyTorch what a course model answers, beside MLX.


Logits = npt.NDArray[np.float32]


def check_logits(
    file: Path, arrays: Mapping[str, mx.array], args: CourseArgs, mlx_folder: Path, *, exact: bool
) -> str:
    """Let PyTorch and MLX score the same text through the checkpoint's own tokenizer, in float32.

    Args:
        file: The artifact's model.pt, of either side of the conversion.
        arrays: The MLX parameters of the other side.
        args: The model's sizes.
        mlx_folder: Holds the tokenizer.
        exact: Whether the weights are equal; if they were cast, a difference is only reported.

    Returns:
        The line to show, which says so where torch was not asked.

    Raises:
        MlxDpoError: If the logits differ by more than float32 rounding.
    """
    if importlib.util.find_spec("torch") is None:
        return "logits: torch itself was not asked: it is not installed"
    sizes = {"vocab_size": args.vocab_size, "n_positions": args.max_seq_len}
    ids = token_batch(load_course_tokenizer(mlx_folder), sizes)
    model = CourseModel(args)
    model.load_weights([(name, value.astype(mx.float32)) for name, value in arrays.items()])
    agreement = compare(torch_logits(file, ids), np.array(model(mx.array(ids))))
    line = f"logits, torch beside MLX on {agreement.num_tokens} tokens of text: {agreement}"
    if not exact:
        return f"{line}, cast included"
    if not agreement.difference <= agreement.allowed:
        raise MlxDpoError(f"{line}; float32 allows {agreement.allowed:.2g}; nothing was written")
    return f"{line} (float32 allows {agreement.allowed:.2g})"


def torch_logits(file: Path, ids: npt.NDArray[np.int64]) -> Logits:
    """The course's forward pass in PyTorch, read off its description and not off our module.

    Args:
        file: A model.pt; every matrix in it is (in, out).
        ids: int64 (B, T).

    Returns:
        float32 (B, T, V).
    """
    import torch

    functional = torch.nn.functional
    content: Any = torch.load(file, map_location="cpu", weights_only=True)
    sizes = content["model_config"]
    params = iter([param.float() for param in content["params"]])
    dim, heads = sizes["embedding_dim"], sizes["num_heads"]

    def linear(x: Any) -> Any:
        return x @ next(params) + next(params)

    def norm(x: Any) -> Any:
        return functional.layer_norm(x, (dim,), next(params), next(params), 1e-5)

    def split(x: Any) -> Any:
        return x.view(*x.shape[:2], heads, dim // heads).transpose(1, 2)

    embedding, positions = next(params), next(params)
    x = embedding[torch.tensor(ids)] + positions[: ids.shape[1]]
    for _ in range(sizes["num_layers"]):
        normed = norm(x)
        q, k, v = (split(linear(normed)) for _ in range(3))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(mixed.transpose(1, 2).reshape(x.shape))
        x = x + linear(functional.gelu(linear(norm(x))))
    logits: Logits = (norm(x) @ embedding.T + next(params)).numpy()
    return logits
