"""What a function evaluates while it is traced, in which order, and what Python still holds then.

Code that trains or scores evaluates only through its `Runtime`. Traced with a `Recorder` in its
place, the same code says all that the graph does not.
"""

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten, tree_unflatten

from mlx_dpo.memory.graph import Array, Graph, Node, trace
from mlx_dpo.training.gradient import Runtime

# Stands for every number that a traced step reads: finite, and a gradient norm that is clipped.
_NUMBER = 1e30
NUMBERS = ("step", "learning_rate")  # of an optimizer; they stay numbers while it is traced


@dataclass(frozen=True)
class Event:
    """An evaluation.

    Attributes:
        dropped: Arrays that Python let go of since the event before.
        evaluated: Arrays evaluated together, in order.
    """

    dropped: list[Array]
    evaluated: list[Array]


@dataclass(frozen=True)
class Recording:
    """A traced computation on a model and the evaluations it asks for.

    Attributes:
        graph: Its inputs are the parameters, then the optimizer's moments.
        events: The evaluations, in order.
        names: Of the parameters, which are its first inputs.
        trained: Names of those that the optimizer updates, in their order.
        updated_at: Number of events before the optimizer replaced what it updates; None where it
            did not.
        parameters: Arrays that are the trained parameters at the end.
        moments: Arrays that are the optimizer's moments at the end.
    """

    graph: Graph
    events: list[Event]
    names: list[str]
    trained: list[str]
    updated_at: int | None
    parameters: list[Array]
    moments: list[Array]


class Recorder(Runtime):
    """Notes what a traced function evaluates, and when Python lets go of it.

    Attributes:
        outputs: A second handle of each array, which leaves the first one's life as it is.
        ends: Number of outputs after each event.
        drops: Number of events before the first handle died, by output; those that live are not in
            it.
        updated_at: Number of events before the optimizer's update.
        gradients: What the optimizer was given for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[mx.array] = []
        self.ends: list[int] = []
        self.drops: dict[int, int] = {}
        self.updated_at: int | None = None
        self.gradients: list[mx.array] = []
        self._references: list[weakref.ref[mx.array]] = []

    def evaluate(self, *trees: Any) -> None:
        """Note an evaluation."""
        for array in _leaves(trees).values():
            number = len(self.outputs)

            def dies(_: Any, number: int = number) -> None:
                self.drops[number] = len(self.ends)

            self.outputs.append(copy.copy(array))
            self._references.append(weakref.ref(array, dies))
        self.ends.append(len(self.outputs))

    begin = evaluate

    def numbers(self, scalars: dict[str, mx.array]) -> dict[str, float]:
        """Note an evaluation of each; every value is one that is clipped."""
        for scalar in scalars.values():
            self.evaluate(scalar)
        return dict.fromkeys(scalars, _NUMBER)

    def values(self, array: mx.array) -> npt.NDArray[np.float32]:
        """Note an evaluation; the values are zeros."""
        self.evaluate(array)
        return np.zeros(array.shape, np.float32)

    @contextmanager
    def watching(self, optimizer: optim.Optimizer) -> Iterator[None]:
        """Note when an optimizer has replaced what it updates."""
        update = optimizer.update

        def noted(model: nn.Module, gradients: Any) -> None:
            self.gradients = [copy.copy(array) for array in _leaves(gradients).values()]
            update(model, gradients)
            self.updated_at = len(self.ends)

        optimizer.update = noted  # type: ignore[method-assign]
        try:
            yield
        finally:
            del optimizer.update

    def events(self, outputs: Sequence[Array]) -> list[Event]:
        """The events, once the graph is there: `outputs` are this recorder's as arrays of it."""
        begins = [0, *self.ends]
        evaluated = [list(outputs[a:b]) for a, b in zip(begins, self.ends, strict=False)]
        # An array may have several handles, and be evaluated again: it goes with the last of them.
        last: dict[Array, int] = {}
        for number, array in enumerate(outputs):
            gone = self.drops.get(number, len(self.ends))
            last[array] = max(gone, last.get(array, 0))
        dropped: list[list[Array]] = [[] for _ in self.ends]
        for array, event in last.items():
            if event < len(self.ends):
                dropped[event].append(array)
        return [Event(*pair) for pair in zip(dropped, evaluated, strict=True)]


def record(
    run: Callable[[Recorder], object], model: nn.Module, optimizer: optim.Optimizer | None = None
) -> Recording:
    """Trace a function that trains or scores a model; nothing is evaluated.

    Args:
        run: Uses model and optimizer, and evaluates through the recorder only.
        model: Its arrays may be unevaluated. It is left as it was, and so is the optimizer.
        optimizer: Its state is made here.
    """
    parameters = _leaves(model.parameters())
    trained = set(_leaves(model.trainable_parameters()))
    trainable = [name for name in parameters if name in trained]
    numbers: dict[str, mx.array] = {}
    moments: dict[str, mx.array] = {}
    if optimizer is not None:
        optimizer.init(model.trainable_parameters())
        for name, array in _leaves(optimizer.state).items():
            (numbers if name in NUMBERS else moments)[name] = array
    recorder = Recorder()

    def install(arrays: Sequence[mx.array]) -> None:
        model.update(tree_unflatten(list(zip(parameters, arrays, strict=False))))
        if optimizer is not None:
            changed = zip(moments, arrays[len(parameters) :], strict=True)
            # In the tree's own order, which is the order of its evaluation.
            optimizer.state = tree_unflatten([*numbers.items(), *changed])

    def traced(*arrays: mx.array) -> list[mx.array]:
        install([copy.copy(array) for array in arrays])
        if optimizer is None:
            run(recorder)
            return recorder.outputs
        with recorder.watching(optimizer):
            run(recorder)
        after = _leaves(optimizer.state)
        current = _leaves(model.parameters())
        ends = [*(current[name] for name in trainable), *(after[name] for name in moments)]
        return [*recorder.outputs, *recorder.gradients, *ends]

    inputs = [*parameters.values(), *moments.values()]
    try:
        graph = trace(traced, inputs)
    finally:
        install(inputs)
    begin = len(recorder.outputs)
    events = recorder.events(graph.outputs[:begin])
    gradients = graph.outputs[begin : begin + len(recorder.gradients)]
    ends = graph.outputs[begin + len(gradients) :]
    if recorder.updated_at is not None:
        names = [*parameters, *moments]
        events[recorder.updated_at].dropped.extend(
            a for n, a in zip(names, graph.inputs, strict=True) if n in trained or n in moments
        )
        _separate(ends, {*gradients, *graph.inputs}, graph.outputs[:begin])
    count = len(trainable) if ends else 0
    kept = Graph(graph.inputs, graph.constants, [*graph.outputs[:begin], *ends])
    return Recording(
        kept,
        events,
        list(parameters),
        trainable,
        recorder.updated_at,
        parameters=ends[:count],
        moments=ends[count:],
    )


def _separate(updated: Sequence[Array], available: set[Array], evaluated: Sequence[Array]) -> None:
    """Give an update operations of its own where it does what is done elsewhere too.

    An export merges operations that are alike. A gradient cast for its norm and cast again for the
    update would be one array, and held from one to the other.

    Args:
        updated: Parameters and moments at the end.
        available: What an update may refer to: gradients, parameters and moments before it.
        evaluated: All that is evaluated.
    """
    ends = set(updated)
    others = Graph([], [], [array for array in evaluated if array not in ends])
    elsewhere = set(others.nodes())
    copies: dict[Array, Array] = {}

    def own(array: Array) -> Array:
        if array in available or array.node not in elsewhere:
            return array
        if array not in copies:
            node = array.node
            made = [Array(a.shape, a.itemsize) for a in node.outputs]
            copies.update(zip(node.outputs, made, strict=True))
            second = Node(node.name, [own(a) for a in node.inputs], made, node.arguments)
            for output in made:
                output.node = second
        return copies[array]

    stack, seen = [a.node for a in updated if a not in available], set[Node]()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen and node not in elsewhere:
            seen.add(node)
            node.inputs = [own(array) for array in node.inputs]
            stack += [a.node for a in node.inputs if a not in available]


def _leaves(tree: Any) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))
