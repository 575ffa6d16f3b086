"""The self-check before the first step, on paper: it may hold more than a step does.

It is the plain definition that is looked at, on the pairs `training.self_check` takes; the fast
paths it is compared with hold less.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_dpo.memory.graph import Graph, trace
from mlx_dpo.memory.replay import Replay
from mlx_dpo.memory.step import WEIGHTS, named_by_shape
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.models.parts import by_layer
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.paths import PlainPath
from mlx_dpo.training.self_check import beginnings, in_float32, sample_pairs

Function = Callable[[], list[mx.array]]


def replay_check(
    model: nn.Module, examples: Sequence[PreferenceExample], path: PlainPath, vocabulary: int
) -> Replay:
    """Replay the self-check; the larger of its two parts.

    Args:
        model: The policy; its arrays may be unevaluated.
        examples: Training pairs.
        path: The plain definition.
        vocabulary: Width of the logits, to call them so.
    """
    batch, longest = sample_pairs(examples)
    short = beginnings(batch[:2])

    def objective() -> mx.array:
        chosen, rejected = path(in_float32(model), short)
        return (chosen - 0.7 * rejected).sum()

    def score() -> list[mx.array]:
        # Without a gradient asked for, models run compiled parts, which can't be traced.
        return [nn.value_and_grad(model, lambda: path(in_float32(model), [longest]).sum())()[0]]

    def norms() -> list[mx.array]:
        flat = named_arrays(nn.value_and_grad(model, objective)()[1]).values()
        squares = (mx.square(g.astype(mx.float32)).sum() for g in flat)
        return [*flat, *(mx.sqrt(one) for one in squares)]

    graph, replay = _begin(model, score, vocabulary)
    replay.evaluate(graph.outputs)
    graph, other = _begin(model, norms, vocabulary)
    names = list(named_arrays(model.trainable_parameters()))
    gradients = dict(zip(names, graph.outputs, strict=False))
    found = dict(zip(names, graph.outputs[len(names) :], strict=True))
    for layer in by_layer(model):
        other.evaluate([gradients[name] for name in layer])
        other.drop([gradients[name] for name in layer])
        other.evaluate([found[name] for name in layer])
    return max(replay, other, key=lambda one: one.peak)


def _begin(model: nn.Module, function: Function, vocabulary: int) -> tuple[Graph, Replay]:
    parameters = named_arrays(model.trainable_parameters())

    def traced(*arrays: mx.array) -> list[mx.array]:
        model.update(_tree(parameters, arrays))
        return function()

    try:
        graph = trace(traced, list(parameters.values()))
    finally:
        model.update(_tree(parameters, parameters.values()))
    return graph, Replay(graph, [WEIGHTS] * len(parameters), named_by_shape(graph, vocabulary))


def _tree(names: Iterable[str], arrays: Iterable[mx.array]) -> Any:
    return tree_unflatten(list(zip(names, arrays, strict=True)))
