"""Undo what mlx-lm's `sanitize` did to a checkpoint, whatever it did, if it only moved numbers.

`sanitize` is run once more on tensors whose every element is its own address: which tensor of the
source it belongs to, and where in it. The output says for each element of the MLX model where it
came from; a renaming, a transposition, a split and a stack of experts are all read off alike.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import UsageError, one_line
from mlx_dpo.models.parameters import as_bits

Shape = tuple[int, ...]
Addresses = npt.NDArray[np.int64]

_PLACE_BITS = 40  # of an address: the element's place in its tensor; the tensor's number above
_PLACE = (1 << _PLACE_BITS) - 1


@dataclass(frozen=True)
class Move:
    """An MLX tensor made of whole source tensors.

    Attributes:
        sources: Their names; more than one where they are stacked along a new first axis.
        axes: The order in which `transpose` put the axes of each.
        stacked: Whether there is a new first axis.
    """

    sources: tuple[str, ...]
    axes: tuple[int, ...]
    stacked: bool


@dataclass
class Trace:
    """Where the tensors of an MLX model came from.

    Attributes:
        shapes: The source's tensors, in the order of their numbers.
        moves: MLX name to whole tensors of the source.
        gathers: MLX name to int64 addresses in the tensor's shape, where it is made of pieces.
        dropped: Source tensors that no parameter is made of.
        unplaced: Names `sanitize` kept for which the model has no parameter.
    """

    shapes: dict[str, Shape]
    moves: dict[str, Move] = field(default_factory=dict)
    gathers: dict[str, Addresses] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)


def trace(model: nn.Module, shapes: Mapping[str, Shape], expected: Mapping[str, Shape]) -> Trace:
    """Follow the tensors of a source through a model's `sanitize`.

    Args:
        model: A fresh one; `sanitize` may change it.
        shapes: Of the source's tensors.
        expected: Shapes of the model's parameters, all of which must be reached.

    Raises:
        UsageError: If `sanitize` fails, computes with the tensors, or misses a parameter.
    """
    path = Trace(dict(shapes))
    probes = {
        name: _addresses(number, shape) for number, (name, shape) in enumerate(shapes.items())
    }
    names = {id(probe): name for name, probe in probes.items()}
    traced = sanitized(model, probes)
    unmoved = {name: names[id(value)] for name, value in traced.items() if id(value) in names}
    del probes  # each address is freed with the last tensor that needs it
    for name in list(traced):
        value = traced.pop(name)
        if name not in expected:
            path.unplaced.append(unmoved.get(name, name))
        elif tuple(value.shape) != expected[name]:
            raise UsageError(
                f"{name}: expected shape {list(expected[name])}, found {list(value.shape)}"
            )
        elif name in unmoved:
            source = unmoved[name]
            path.moves[name] = Move((source,), tuple(range(len(shapes[source]))), False)
        else:
            _classify(path, name, value)
    missing = [name for name in expected if name not in path.moves and name not in path.gathers]
    if missing:
        raise UsageError(f"{missing[0]}: nothing in the checkpoint leads to it")
    reached = {source for move in path.moves.values() for source in move.sources}
    order = list(path.shapes)
    for addresses in path.gathers.values():
        reached |= {order[number] for number in np.unique(addresses >> _PLACE_BITS).tolist()}
    path.dropped = [name for name in shapes if name not in reached]
    return path


def sanitized(model: nn.Module, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Tensors of a checkpoint as mlx-lm names and lays them out.

    Raises:
        UsageError: If mlx-lm fails on them.
    """
    if not hasattr(model, "sanitize"):
        return dict(arrays)
    try:
        return dict(model.sanitize(dict(arrays)))
    except Exception as error:  # the names or shapes are not what its author expected
        raise UsageError(
            f"mlx-lm can't read these tensors: {type(error).__name__}: {one_line(error)}"
        ) from None


def restore(path: Trace, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """The source's tensors from those of the MLX model, without those it dropped.

    Args:
        path: From `trace`.
        weights: Tensors of the MLX model, with the names and shapes that `trace` expected.

    Raises:
        UsageError: If an element of a source tensor is written twice or never.
    """
    restored: dict[str, mx.array] = {}
    for name, move in path.moves.items():
        back = tuple(np.argsort(move.axes).tolist())
        parts = weights[name] if move.stacked else [weights[name]]
        for source, part in zip(move.sources, parts, strict=True):
            if source in restored:
                raise UsageError(f"{source}: mlx-lm uses it in two places")
            is_moved = back != tuple(range(len(back)))
            restored[source] = mx.contiguous(part.transpose(back)) if is_moved else part
    pieces = _gather_back(path, weights)
    twice = sorted(restored.keys() & pieces.keys())
    if twice:
        raise UsageError(f"{twice[0]}: mlx-lm uses it in two places")
    return restored | pieces


def _gather_back(path: Trace, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Source tensors of which pieces went to several places."""
    order = list(path.shapes)
    parts: dict[str, npt.NDArray[np.generic]] = {}
    counts: dict[str, npt.NDArray[np.uint8]] = {}
    dtypes: dict[str, mx.Dtype] = {}
    for name, addresses in path.gathers.items():
        bits = np.array(as_bits(weights[name])).reshape(-1)
        flat = addresses.reshape(-1)
        for number in np.unique(flat >> _PLACE_BITS).tolist():
            source, chosen = order[number], flat >> _PLACE_BITS == number
            size = math.prod(path.shapes[source])
            part = parts.setdefault(source, np.zeros(size, bits.dtype))
            count = counts.setdefault(source, np.zeros(size, np.uint8))
            if dtypes.setdefault(source, weights[name].dtype) != weights[name].dtype:
                raise UsageError(f"{source}: its parts are of different dtypes here")
            part[flat[chosen] & _PLACE] = bits[chosen]
            np.add.at(count, flat[chosen] & _PLACE, 1)
    for source, count in counts.items():
        if (count != 1).any():
            raise UsageError(f"{source}: mlx-lm keeps only parts of it, or keeps them twice")
    return {
        source: mx.array(part).view(dtypes[source]).reshape(path.shapes[source])
        for source, part in parts.items()
    }


def _classify(path: Trace, name: str, value: mx.array) -> None:
    """Record how the addresses in `value` came from source tensors: as wholes or in pieces."""
    if value.dtype == mx.int64 and value.size:
        order, shapes = list(path.shapes), path.shapes
        move = _whole(order, shapes, value[None], False) or _whole(order, shapes, value, True)
        if move:
            path.moves[name] = move
            return
        addresses = np.array(value)
        numbers = addresses >> _PLACE_BITS
        if numbers.min() >= 0 and numbers.max() < len(order):
            sizes = np.array([math.prod(shape) for shape in shapes.values()])
            if ((addresses & _PLACE) < sizes[numbers]).all():
                path.gathers[name] = addresses
                return
    raise UsageError(f"{name}: mlx-lm computes it, and the way back is not known")


def _whole(
    order: list[str], shapes: dict[str, Shape], value: mx.array, stacked: bool
) -> Move | None:
    """The source tensors of which the slices of `value` along its first axis are transposes."""
    if value.ndim < 2:
        return None
    sources, axes = [], None
    for part in value:
        number = int(np.array(part.reshape(-1)[:1])[0]) >> _PLACE_BITS
        if not 0 <= number < len(order) or len(shapes[order[number]]) != part.ndim:
            return None
        source = _addresses(number, shapes[order[number]])
        fitting = [axes] if axes else permutations(range(part.ndim))
        axes = next((a for a in fitting if _is_transpose(part, source, a)), None)
        if axes is None:
            return None
        sources.append(order[number])
    return Move(tuple(sources), axes or (), stacked)


def _is_transpose(part: mx.array, source: mx.array, axes: tuple[int, ...]) -> bool:
    moved = source.transpose(axes)
    return moved.shape == part.shape and bool(mx.array_equal(moved, part).item())


def _addresses(number: int, shape: Shape) -> mx.array:
    size = math.prod(shape)
    return mx.arange(size, dtype=mx.int64).reshape(shape) + (number << _PLACE_BITS)
