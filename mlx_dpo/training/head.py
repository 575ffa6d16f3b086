"""The output layer only where a response token is predicted, and never all logits at once.

To call the head of a model without its trunk (see `models.parts`), a stand-in takes the trunk's
place in a shallow copy of the model: whatever the model does behind its trunk is done as the model
does it.

Shapes: R rows, N positions, S scored tokens, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_dpo.models.device import on_gpu
from mlx_dpo.models.parts import at, replaced, trunk_path, with_trunk
from mlx_dpo.training.prompts import caches_of_whole_rows

# Logits alive at a time: one chunk of this size and its gradient are all there is of them. Smaller
# chunks cost time (each is computed twice) and a piece of gradient the size of the output layer.
CHUNK_BYTES = 256 * 2**20
# The same of a head that does not train: no chunk is computed twice, and there is no such gradient.
FROZEN_CHUNK_BYTES = 8 * 2**20
# At least so many tokens, where memory comes first and where time does: a product with few rows
# reads the whole output layer for little work (on a CPU 42 rows cost 1.4 times what 128 do).
_FRUGAL_CHUNK_TOKENS, _CHUNK_TOKENS = 32, 128

Parameters = dict[str, Any]


def hidden_states(model: nn.Module, ids: mx.array, cache: Sequence[Any] | None) -> mx.array:
    """What the trunk returns for int32 ids (R, N): (R, N, H).

    Args:
        model: Reads them.
        ids: Rows that hold their prompt, or that go on from what `cache` has of it.
        cache: One for each layer that keeps something; None for whole rows.

    Raises:
        UnknownStructureError: If trunk and head can't be separated.
    """
    path = trunk_path(model)
    recorder = _Recorder(at(model, path))
    whole = with_trunk(model, path, recorder)
    cache = caches_of_whole_rows(model) if cache is None else cache
    # The logits that come back are never evaluated.
    whole(ids) if cache is None else whole(ids, cache=cache)
    return recorder.output


def token_logprobs(
    model: nn.Module,
    hidden: mx.array,
    targets: mx.array,
    *,
    gradient: bool = False,
    frugal: bool = False,
) -> mx.array:
    """Log-prob of each target under the head, in nats.

    Where the logits would take more than `CHUNK_BYTES` they are computed in chunks, and computed
    again for the gradient instead of being kept. The gradient of a head that does not train can be
    computed together with its values, by `_in_small_chunks`.

    Args:
        model: The model.
        hidden: (S, H), the trunk's output where each target is predicted.
        targets: int32 (S,).
        gradient: Whether a gradient will be asked for. One that was not announced is right too,
            and costs more.
        frugal: Whether memory comes before time, as where layers are checkpointed.

    Returns:
        float32 (S,).
    """
    path = trunk_path(model)
    trunk = at(model, path)
    probe = _StandIn(trunk, hidden[None, :1])
    vocabulary = _call(with_trunk(model, path, probe), probe).shape[-1]
    parameters = {
        "head": _without(model.trainable_parameters(), path),
        # A tied output layer is part of the trunk; the parts that the head used show which.
        "trunk": {
            name: trunk[name].trainable_parameters()
            for name in sorted(probe.touched)
            if isinstance(trunk.get(name), nn.Module)
        },
    }

    def logits(parameters: Parameters, hidden: mx.array) -> mx.array:
        tied = {name: replaced(trunk[name], p) for name, p in parameters["trunk"].items()}
        stand_in = _StandIn(trunk, hidden[None], tied)
        head = with_trunk(replaced(model, parameters["head"]), path, stand_in)
        return _call(head, stand_in)

    def logprobs(parameters: Parameters, hidden: mx.array, targets: mx.array) -> mx.array:
        found = _float32(logits(parameters, hidden))
        return _log_softmax_at(found, targets, keep=gradient and not on_gpu())

    # The head of a model with adapters: they train below it. A frozen copy scores in whole chunks,
    # like the model whose reference it is.
    if not tree_flatten(parameters) and tree_flatten(model.trainable_parameters()):
        head = partial(logits, parameters)
        least = _FRUGAL_CHUNK_TOKENS if frugal else _CHUNK_TOKENS
        size = max(least, FROZEN_CHUNK_BYTES // (4 * vocabulary))
        return _in_small_chunks(head, hidden, targets, size, gradient=gradient)
    num_chunks = -(-len(targets) * vocabulary * 4 // CHUNK_BYTES)
    if num_chunks <= 1:
        return logprobs(parameters, hidden, targets)
    size = -(-len(targets) // num_chunks)
    parts = []
    for start in range(0, len(targets), size):
        # Targets are closed over: mx.checkpoint would differentiate them, were they an argument.
        def chunk(p: Parameters, h: mx.array, y: mx.array = targets[start : start + size]) -> Any:
            return logprobs(p, h, y)

        parts.append(mx.checkpoint(chunk)(parameters, hidden[start : start + size]))
    return mx.concatenate(parts)


def _in_small_chunks(
    logits: Callable[[mx.array], mx.array],
    hidden: mx.array,
    targets: mx.array,
    size: int,
    *,
    gradient: bool,
) -> mx.array:
    """Log-probs (S,), with their gradient by the hidden states, `size` tokens at a time.

    A log-prob depends on one hidden state only, so the gradient of all of them is one (S, H) array,
    the slope. ``value + (h - h0) * slope`` has this value at ``h = h0``, and this gradient. Nothing
    of a chunk's logits is kept or computed again, and one chunk waits for the one before it.
    """
    still = mx.stop_gradient(hidden)
    values: list[mx.array] = []
    slopes: list[mx.array] = []
    for start in range(0, len(targets), size):
        part = (still if gradient else hidden)[start : start + size]
        wanted = targets[start : start + size]
        if values:
            (part,) = mx.depends([part], [values[-1], *slopes[-1:]])
        if gradient:
            value, slope = _value_and_slope(logits, part, wanted)
            slopes.append(slope)
        else:
            value = _log_softmax_at(_float32(logits(part)), wanted)
        values.append(value)
    value = mx.concatenate(values)
    if not gradient:
        return value
    slope = mx.stop_gradient(mx.concatenate(slopes))
    return mx.stop_gradient(value) + ((hidden - still) * slope).astype(mx.float32).sum(axis=-1)


def _value_and_slope(
    logits: Callable[[mx.array], mx.array], hidden: mx.array, targets: mx.array
) -> tuple[mx.array, mx.array]:
    """Log-probs (S,) and their gradient by the hidden states (S, H); `logits` gives (1, S, V).

    The gradient by the logits, a one at the target less the softmax, is written into the softmax:
    differentiated, picking the target would make a whole array of zeros to put the one into.
    """

    def weighted(hidden: mx.array) -> list[mx.array]:
        found = _float32(logits(hidden))
        values = _log_softmax_at(mx.stop_gradient(found), targets)
        others = -mx.softmax(mx.stop_gradient(found), axis=-1)
        by_logits = mx.put_along_axis(
            others, targets[:, None], (1 - mx.exp(values))[:, None], axis=-1
        )
        return [(found * by_logits).sum(axis=-1), values]

    count = len(targets)
    (_, value), (slope,) = mx.vjp(weighted, [hidden], [mx.ones(count), mx.zeros(count)])
    return value, slope


def _float32(logits: mx.array) -> mx.array:
    """Logits (1, S, V) as float32 (S, V); squeezed, because an index of one row copies it."""
    return logits.squeeze(0).astype(mx.float32)


def _log_softmax_at(logits: mx.array, targets: mx.array, *, keep: bool = False) -> mx.array:
    """Log-probs (S,) of int targets (S,) under float32 logits (S, V).

    The gradient of `mx.logsumexp` computes every exponential again, and keeps the logits for it.
    With `keep` it finds the exponentials in their place: fewer of them, and more passes over
    memory. That pays where an exponential takes longer than a pass, as on a CPU.
    """
    picked = mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)
    if not keep:
        return picked - mx.logsumexp(logits, axis=-1)
    largest = mx.stop_gradient(logits.max(axis=-1))
    return picked - largest - mx.log(mx.exp(logits - largest[:, None]).sum(axis=-1))


class _Recorder:
    """Wraps a trunk and keeps its output."""

    output: mx.array

    def __init__(self, trunk: nn.Module) -> None:
        self._trunk = trunk

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self._trunk(*args, **kwargs)
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trunk, name)


class _StandIn:
    """Replaces a trunk: returns a given output, and records which other parts the model uses."""

    def __init__(
        self, trunk: nn.Module, output: mx.array, parts: dict[str, nn.Module] | None = None
    ) -> None:
        self._trunk = trunk
        self._parts = parts or {}
        self.output = output
        self.touched: set[str] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return self.output

    def __getattr__(self, name: str) -> Any:
        self.touched.add(name)
        return self._parts[name] if name in self._parts else getattr(self._trunk, name)


def _call(head: Any, stand_in: _StandIn) -> mx.array:
    """The head's logits for what the stand-in returns; the ids it is called with don't matter."""
    logits: mx.array = head(mx.zeros(stand_in.output.shape[:2], dtype=mx.int32))
    return logits


def _without(parameters: Parameters, path: Sequence[str]) -> Parameters:
    first, *rest = path
    kept = {name: value for name, value in parameters.items() if name != first}
    return {**kept, first: _without(parameters[first], rest)} if rest else kept
