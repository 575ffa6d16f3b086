"""Asking PyTorch what a course model answers, beside MLX."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_dpo.convert.course.artifact import load_course_tokenizer
from mlx_dpo.convert.verify import compare, token_batch
from mlx_dpo.errors import MlxDpoError
from mlx_dpo.models.course import CourseArgs, CourseModel

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
