"""One step of training on paper: the code that trains, traced and evaluated as the trainer does.

What `DPOTrainer` hands to `mx.eval`, in which order, and what it still holds meanwhile is written
down once more here; the rest follows from the graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_dpo.memory.graph import Array, Graph, trace
from mlx_dpo.memory.replay import Replay
from mlx_dpo.models.parts import by_layer
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.loss import dpo_loss
from mlx_dpo.training.paths import ScoringPath

Batch = Sequence[PreferenceExample]
WEIGHTS, OPTIMIZER, GRADIENTS, LOGITS = "weights", "optimizer state", "gradients", "logits"

_NUMBERS = ("step", "learning_rate")  # of an optimizer; they stay numbers while it is traced


@dataclass(frozen=True)
class Step:
    """A traced step.

    Attributes:
        graph: Its inputs are the parameters, then the optimizer's state.
        names: Names of the parameters; gradients and the like are in this order.
        state_names: Names of the optimizer's arrays.
        layers: Names of the parameters as they are updated, layer by layer.
        parts: The graph's outputs: ``loss 0``, ``gradients 0`` and so on for each micro-batch,
            ``sum`` where there are two, ``total`` (the gradient in the parameters' type),
            ``squares``, ``clipped``, ``updated``, ``state``.
    """

    graph: Graph
    names: list[str]
    state_names: list[str]
    layers: list[list[str]]
    parts: dict[str, list[Array]]

    def by_name(self, part: str) -> dict[str, Array]:
        """A part that has an array for each parameter."""
        return dict(zip(self.names, self.parts[part], strict=True))


def trace_step(
    model: nn.Module,
    optimizer: optim.Optimizer,
    path: ScoringPath,
    batches: Sequence[Batch],
    *,
    clip: bool,
) -> Step:
    """Trace a step; nothing is evaluated, and model and optimizer are left as they were.

    Args:
        model: The policy; its arrays may be unevaluated.
        optimizer: Of the run.
        path: How log-probs are computed.
        batches: The micro-batches, at most two: a third adds nothing to the peak.
        clip: Whether the gradient is clipped.
    """
    optimizer.init(model.trainable_parameters())
    # In the trees' own order, which is the order of their evaluation.
    numbers = {n: a for n, a in _leaves(optimizer.state).items() if n in _NUMBERS}
    parameters, state = _leaves(model.trainable_parameters()), _moments(optimizer)
    counts: dict[str, int] = {}

    def step(*arrays: mx.array) -> list[mx.array]:
        model.update(tree_unflatten(list(zip(parameters, arrays, strict=False))))
        moments = zip(state, arrays[len(parameters) :], strict=True)
        optimizer.state = tree_unflatten([*numbers.items(), *moments])
        parts = _outputs(model, optimizer, path, batches, clip=clip)
        counts.update({name: len(part) for name, part in parts.items()})
        return [array for part in parts.values() for array in part]

    try:
        graph = trace(step, [*parameters.values(), *state.values()])
    finally:
        model.update(tree_unflatten(list(parameters.items())))
        optimizer.state = tree_unflatten([*numbers.items(), *state.items()])
    outputs = iter(graph.outputs)
    parts = {name: [next(outputs) for _ in range(count)] for name, count in counts.items()}
    return Step(graph, list(parameters), list(state), by_layer(model), parts)


def _outputs(
    model: nn.Module,
    optimizer: optim.Optimizer,
    path: ScoringPath,
    batches: Sequence[Batch],
    *,
    clip: bool,
) -> dict[str, list[mx.array]]:
    def loss(batch: Batch) -> tuple[mx.array, dict[str, mx.array]]:
        policy = path(model, batch)
        reference = mx.zeros(policy.shape)
        return dpo_loss(policy[0], policy[1], reference[0], reference[1], beta=0.1)

    parts: dict[str, list[mx.array]] = {}
    summed = None
    for number, batch in enumerate(batches):
        (value, metrics), grads = nn.value_and_grad(model, loss)(batch)
        if len(batches) > 1:
            grads = tree_map(lambda g: g.astype(mx.float32) * 0.5, grads)
        summed = grads if summed is None else tree_map(mx.add, summed, grads)
        parts[f"loss {number}"] = [value, *metrics.values()]
        parts[f"gradients {number}"] = list(_leaves(grads).values())
        if number:
            parts["sum"] = list(_leaves(summed).values())
    summed = tree_map(lambda g, p: g.astype(p.dtype), summed, model.trainable_parameters())
    flat = _leaves(summed).values()
    parts["total"] = list(flat)
    # The norm has `mx.square`, but AdamW squares too, and a trace makes one of what it finds twice.
    parts["squares"] = [mx.multiply(f := g.astype(mx.float32), f).sum() for g in flat]
    if clip:
        summed = tree_map(lambda g: g * 0.5, summed)
        parts["clipped"] = list(_leaves(summed).values())
    optimizer.update(model, summed)
    parts["updated"] = list(_leaves(model.trainable_parameters()).values())
    parts["state"] = list(_moments(optimizer).values())
    return parts


def _moments(optimizer: optim.Optimizer) -> dict[str, mx.array]:
    """What an optimizer keeps of each parameter."""
    return {n: a for n, a in _leaves(optimizer.state).items() if n not in _NUMBERS}


def _leaves(tree: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))


def replay_step(step: Step, *, fused: bool, vocabulary: int) -> Replay:
    """Evaluate a step on paper.

    Args:
        step: The step.
        fused: Whether each layer is updated as its gradient is there.
        vocabulary: Width of the logits, to call them so.
    """
    held = [WEIGHTS] * len(step.names) + [OPTIMIZER] * len(step.state_names)
    names = named_by_shape(step.graph, vocabulary)
    names |= dict.fromkeys(step.parts["updated"], WEIGHTS)
    names |= dict.fromkeys(step.parts["state"], OPTIMIZER)
    replay = Replay(step.graph, held, names)
    (_fused if fused else _whole)(replay, step)
    return replay


def named_by_shape(graph: Graph, vocabulary: int) -> dict[Array, str]:
    """What is what: logits by their width, gradients and updates by the shape of a matrix."""
    matrices = {a.shape for a in graph.inputs if len(a.shape) > 1}
    names: dict[Array, str] = {}
    for array in graph.arrays():
        if array.shape in matrices:
            names[array] = GRADIENTS
        elif array.shape and array.shape[-1] == vocabulary and len(array.shape) > 1:
            names[array] = LOGITS
    return names


def _fused(replay: Replay, step: Step) -> None:
    """As `DPOTrainer._fused_step`."""
    parts = step.parts
    replay.evaluate(parts["loss 0"])
    replay.drop([*parts["loss 0"], *step.graph.inputs, *parts["gradients 0"]])
    squares = step.by_name("squares")
    for names in step.layers:
        _evaluate_layer(replay, step, "total", names)
        replay.evaluate([squares[name] for name in names])
        replay.drop([squares[name] for name in names])
        _evaluate_update(replay, step, "total", names)
    replay.evaluate([*parts["updated"], *parts["state"]])


def _whole(replay: Replay, step: Step) -> None:
    """As `DPOTrainer._accumulate` and `_whole_step`."""
    parts = step.parts
    summed = "gradients 0"
    replay.evaluate(parts["loss 0"])
    for names in step.layers:
        _evaluate_layer(replay, step, summed, names)
    if "sum" in parts:
        replay.drop([*parts[summed], *parts["gradients 1"]])
        summed = "sum"
        replay.evaluate(parts["loss 1"])
        for names in step.layers:
            _evaluate_layer(replay, step, summed, names)
    replay.drop(parts[summed])
    squares = step.by_name("squares")
    replay.evaluate([squares[name] for name in sorted(squares)])
    replay.drop([*parts["squares"], *step.graph.inputs])
    used = "total"
    if "clipped" in parts:
        replay.drop(parts["total"])
        used = "clipped"
    for names in step.layers:
        _evaluate_layer(replay, step, used, names)
        _evaluate_update(replay, step, used, names)
    replay.evaluate([*parts["updated"], *parts["state"]])


def _evaluate_layer(replay: Replay, step: Step, part: str, names: Sequence[str]) -> None:
    gradients = step.by_name(part)
    replay.evaluate([gradients[name] for name in names])


def _evaluate_update(replay: Replay, step: Step, part: str, names: Sequence[str]) -> None:
    """As `training.update.evaluate_update`: gradients go, moments come, kind by kind."""
    gradients, updated = step.by_name(part), step.by_name("updated")
    kinds: dict[str, list[Array]] = {}
    state = dict(zip(step.state_names, step.parts["state"], strict=True))
    for moment in sorted(state):
        parameter, _, kind = moment.rpartition(".")
        if parameter in names:
            kinds.setdefault(kind, []).append(state[moment])
    replay.drop([gradients[name] for name in names])
    for moments in kinds.values():
        replay.evaluate(moments)
    replay.evaluate([updated[name] for name in names])
