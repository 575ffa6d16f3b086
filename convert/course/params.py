"""The course's list of unnamed parameters, and their names in the MLX model.

The course stores every matrix as (in, out), MLX as (out, in). Four of the six matrices of a block
are square, so that a forgotten transposition would load without an error.
"""

from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_dpo.convert.torch_zip.tensors import Tensor, as_mlx, from_mlx
from mlx_dpo.errors import UsageError
from mlx_dpo.models.course import CourseArgs
from mlx_dpo.models.parameters import check_finite

_TENSORS_PER_BLOCK = 16
_TENSORS_OUTSIDE = 5
_DTYPES = (mx.float32, mx.float16, mx.bfloat16)


class Slot(NamedTuple):
    """One entry of the list.

    Attributes:
        name: Of the parameter in the MLX model.
        shape: In the course's layout.
        is_matrix: Whether MLX stores it transposed.
    """

    name: str
    shape: tuple[int, ...]
    is_matrix: bool = False


def num_params(args: CourseArgs) -> int:
    """Length of the course's list."""
    return _TENSORS_PER_BLOCK * args.num_layers + _TENSORS_OUTSIDE


def slots(args: CourseArgs) -> list[Slot]:
    """The course's list in its order: 16 tensors a block and 5 more."""
    dim = args.embedding_dim
    return [
        Slot("model.token_embed.weight", (args.vocab_size, dim)),
        Slot("model.pos_embed.weight", (args.max_seq_len, dim)),
        *(slot for number in range(args.num_layers) for slot in _block(args, number)),
        *_pair("model.ln_final", (dim,), dim),
        Slot("head_bias", (args.vocab_size,)),
    ]


def params_to_mlx(params: Any, args: CourseArgs, source: Path) -> dict[str, mx.array]:
    """Name the tensors of a model.pt and put them in MLX's layout; dtypes stay.

    Args:
        params: The file's ``params``.
        args: The file's sizes.
        source: The file, for messages.

    Raises:
        UsageError: If a tensor is missing, of another shape or dtype, or not finite; the message
            names it.
    """
    expected = num_params(args)
    if not isinstance(params, list) or len(params) != expected:
        what = len(params) if isinstance(params, list) else type(params).__name__
        raise UsageError(
            f"{source}: params: expected a list of {expected} tensors for {args.num_layers} "
            f"layers, found {what}"
        )
    arrays = {}
    for number, (slot, value) in enumerate(zip(slots(args), params, strict=True)):
        shape = getattr(value, "shape", None)
        if shape != slot.shape:
            raise UsageError(
                f"{source}: params[{number}] ({slot.name}): expected shape {list(slot.shape)}, "
                f"found {list(shape) if shape is not None else type(value).__name__}"
            )
        arrays[slot.name] = _to_mlx(value, slot, source)
    check_finite(arrays, source)
    return arrays


def params_to_torch(arrays: dict[str, mx.array], args: CourseArgs) -> list[Tensor]:
    """The course's list from the parameters of an MLX model, checked by `check_arrays`."""
    return [
        from_mlx(mx.contiguous(arrays[slot.name].T) if slot.is_matrix else arrays[slot.name])
        for slot in slots(args)
    ]


def check_arrays(arrays: dict[str, mx.array], args: CourseArgs, source: Path) -> None:
    """Check that the parameters of an MLX folder are those of a model of these sizes.

    Raises:
        UsageError: If one is missing, superfluous, of another shape or dtype, or not finite.
    """
    # Before the names are listed: a config may claim any number of layers.
    if len(arrays) != num_params(args):
        raise UsageError(
            f"{source}: expected {num_params(args)} tensors for {args.num_layers} layers, found "
            f"{len(arrays)}"
        )
    expected = {slot.name: slot for slot in slots(args)}
    unknown, missing = arrays.keys() - expected.keys(), expected.keys() - arrays.keys()
    if unknown:
        raise UsageError(
            f"{source}: {min(unknown)} is not a parameter of a course model; {min(missing)} is "
            "missing"
        )
    for name, slot in expected.items():
        shape = slot.shape[::-1] if slot.is_matrix else slot.shape
        if arrays[name].shape != shape or arrays[name].dtype not in _DTYPES:
            raise UsageError(
                f"{source}: {name}: expected shape {list(shape)} in float32, float16 or bfloat16, "
                f"found {list(arrays[name].shape)} in {arrays[name].dtype}"
            )
    check_finite(arrays, source)


def _block(args: CourseArgs, number: int) -> list[Slot]:
    prefix, dim, hidden = f"model.layers.{number}", args.embedding_dim, args.hidden_dim
    attention = [
        slot
        for part in ("q", "k", "v", "out")
        for slot in _pair(f"{prefix}.attention.{part}", (dim, dim), dim)
    ]
    return [
        *_pair(f"{prefix}.ln1", (dim,), dim),
        *attention,
        *_pair(f"{prefix}.ln2", (dim,), dim),
        *_pair(f"{prefix}.fc1", (dim, hidden), hidden),
        *_pair(f"{prefix}.fc2", (hidden, dim), dim),
    ]


def _pair(name: str, weight: tuple[int, ...], bias: int) -> list[Slot]:
    return [Slot(f"{name}.weight", weight, len(weight) == 2), Slot(f"{name}.bias", (bias,))]


def _to_mlx(value: Tensor, slot: Slot, source: Path) -> mx.array:
    array = as_mlx(value)
    if array.dtype not in _DTYPES:
        raise UsageError(
            f"{source}: {slot.name}: expected float32, float16 or bfloat16, found {array.dtype}"
        )
    return mx.contiguous(array.T) if slot.is_matrix else array
