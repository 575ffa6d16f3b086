"""The output layer only where a response token is predicted, and never all logits at once.

A model of mlx-lm is a trunk (embedding, layers, last norm) and a head (output layer, scaling,
capping) behind it. To call one without the other, a stand-in takes the trunk's place in a shallow
copy of the model: whatever the model does behind its trunk is done as the model does it.

Shapes: R rows, N positions, S scored tokens, H hidden size, V vocabulary.
"""

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

# Logits alive at a time: one chunk of this size and its gradient are all there is of them. Smaller
# chunks cost time (each is computed twice) and a piece of gradient the size of the output layer.
CHUNK_BYTES = 256 * 2**20

Parameters = dict[str, Any]


class UnknownStructureError(Exception):
    """Trunk and head can't be told apart; the model can only be called whole."""


def hidden_states(model: nn.Module, ids: mx.array, cache: Sequence[Any] | None) -> mx.array:
    """What the trunk returns for int32 ids (R, N): (R, N, H).

    Raises:
        UnknownStructureError: If the trunk can't be told from the head.
    """
    path = trunk_path(model)
    recorder = _Recorder(at(model, path))
    whole = with_trunk(model, path, recorder)
    # The logits that come back are never evaluated.
    whole(ids) if cache is None else whole(ids, cache=cache)
    return recorder.output


def token_logprobs(model: nn.Module, hidden: mx.array, targets: mx.array) -> mx.array:
    """Log-prob of each target under the head, in nats.

    Where the logits would take more than `CHUNK_BYTES` they are computed in chunks, and computed
    again for the gradient instead of being kept.

    Args:
        model: The model.
        hidden: (S, H), the trunk's output where each target is predicted.
        targets: int32 (S,).

    Returns:
        float32 (S,).
    """
    path = trunk_path(model)
    trunk = at(model, path)
    probe = _StandIn(trunk, hidden[None, :1])
    vocabulary = _call(with_trunk(model, path, probe), probe).shape[-1]
    parameters = {
        "head": _without(model.parameters(), path),
        # A tied output layer is a part of the trunk; what the head asked for shows which.
        "trunk": {
            name: trunk[name].parameters()
            for name in sorted(probe.touched)
            if isinstance(trunk.get(name), nn.Module)
        },
    }

    def logprobs(parameters: Parameters, hidden: mx.array, targets: mx.array) -> mx.array:
        tied = {name: replaced(trunk[name], p) for name, p in parameters["trunk"].items()}
        stand_in = _StandIn(trunk, hidden[None], tied)
        head = with_trunk(replaced(model, parameters["head"]), path, stand_in)
        logits = _call(head, stand_in)[0].astype(mx.float32)
        picked = mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)
        return picked - mx.logsumexp(logits, axis=-1)

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


class _Recorder:
    """Stands before a trunk and keeps what it returns."""

    output: mx.array

    def __init__(self, trunk: nn.Module) -> None:
        self._trunk = trunk

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.output = self._trunk(*args, **kwargs)
        return self.output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trunk, name)


class _StandIn:
    """Stands for a trunk: returns what it was given, and notes what else the model asks of it."""

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


def trunk_path(model: nn.Module) -> list[str]:
    """Names that lead from a model to its trunk: the module that holds the token embedding."""
    path: list[str] = []
    module = model
    while not any(isinstance(child, nn.Embedding) for child in module.children().values()):
        inner = [
            name
            for name, child in module.children().items()
            if isinstance(child, nn.Module) and not isinstance(child, nn.Linear)
        ]
        if len(inner) != 1:
            raise UnknownStructureError("no single module in it holds the token embedding")
        path.append(inner[0])
        module = module[inner[0]]
    if not path:
        raise UnknownStructureError("its embedding is not apart from its output layer")
    return path


def at(model: nn.Module, path: Sequence[str]) -> nn.Module:
    """The module that names lead to."""
    for name in path:
        # What `with_trunk` put in the place of the module's own entry counts.
        model = getattr(model, name)
    return model


def with_trunk(model: nn.Module, path: Sequence[str], trunk: Any) -> Any:
    """A copy of the model with another trunk; everything else is shared with it."""
    if not path:
        return trunk
    outer = copy.copy(model)
    # A plain attribute, found before the module's own entry of this name.
    object.__setattr__(outer, path[0], with_trunk(model[path[0]], path[1:], trunk))
    return outer


def _call(head: Any, stand_in: _StandIn) -> mx.array:
    """The head's logits for what the stand-in returns; the ids it is called with don't matter."""
    logits: mx.array = head(mx.zeros(stand_in.output.shape[:2], dtype=mx.int32))
    return logits


def _without(parameters: Parameters, path: Sequence[str]) -> Parameters:
    first, *rest = path
    kept = {name: value for name, value in parameters.items() if name != first}
    return {**kept, first: _without(parameters[first], rest)} if rest else kept


def replaced(module: Any, parameters: Any) -> Any:
    """A copy of a module that computes with other parameters; those not named are shared."""
    if isinstance(parameters, mx.array):
        return parameters
    if isinstance(parameters, list):
        return [replaced(m, p) for m, p in zip(module, parameters, strict=True)]
    changed = copy.copy(module)
    for name, value in parameters.items():
        changed[name] = replaced(module[name], value)
    return changed
