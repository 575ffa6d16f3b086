"""A traced computation replayed without computing: when each buffer is allocated, and when freed.

The rules are MLX's own, those of its CPU backend. An evaluation puts the operations it needs in
order (breadth first, at most 20 wide), views share a buffer, an operation writes into its input
where nobody else needs it, and what was scheduled is held until the device has run it, up to some
hundred operations later.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.memory.graph import Array, Graph, Node
from mlx_dpo.memory.recorder import Event

OTHER = "activations"

_WIDTH = 20  # of the breadth-first order, MLX_BFS_MAX_WIDTH
_PER_TASK, _TASKS = 10, 10  # dispatches a task, and tasks that may wait for the device
_VIEWS = {
    *("Broadcast", "ExpandDims", "Squeeze", "Transpose", "Slice", "Split", "StopGradient"),
    *("Depends", "Copy", "Flatten", "Unflatten", "Reshape", "Contiguous", "AsStrided", "View"),
}
_RESHAPES = {  # of an array in row order they give another
    *("ExpandDims", "Squeeze", "StopGradient", "Copy", "Flatten", "Unflatten", "Reshape"),
    "Contiguous",
}
_ELEMENTWISE = {
    *("Abs", "Negative", "Square", "Sqrt", "Exp", "Log", "Sigmoid", "Cos", "Sin", "Tanh", "Erf"),
    *("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power", "LogAddExp"),
    *("Select", "Sign", "Round", "AsType", "LogicalNot", "Rsqrt", "Log1p", "Expm1", "Softmax"),
    *("BitwiseBinary", "LogicalAnd", "LogicalOr", "Equal", "Greater", "GreaterEqual", "Less"),
    *("LessEqual", "NotEqual"),
}
_INTO_FIRST = {"SliceUpdate", "Scatter", "ScatterAxis"}  # a copy of the first input, changed
_PRODUCTS = {"Matmul", "AddMM"}

Layout = npt.NDArray[Any]


class _Buffer:
    __slots__ = ("holds", "nbytes", "tag")

    def __init__(self, nbytes: int, tag: str) -> None:
        self.nbytes = nbytes
        self.holds = 0
        self.tag = tag


class Replay:
    """Evaluates a graph without computing it.

    Args:
        graph: The computation. Buffers of arrays without a name are `OTHER`.

    Attributes:
        active: Bytes in use.
        peak: Most bytes that were in use at once.
        at_peak: Bytes by name at that moment.
    """

    def __init__(self, graph: Graph) -> None:
        self.active = 0
        self.at_peak: dict[str, int] = {}
        self._now: Counter[str] = Counter()
        self._lasting = {array.name for array in graph.inputs}
        self._flying: deque[tuple[int, list[_Buffer]]] = deque()
        self._dispatched = 0
        self.peak = 0
        for node in graph.nodes():
            for array in node.inputs:
                array.uses += 1
        for array in (*graph.inputs, *graph.constants):
            self._give(array, self._new(array))
        for array in {*graph.inputs, *graph.constants, *graph.outputs}:
            array.uses += 1  # a handle

    def run(self, events: Iterable[Event]) -> None:
        """Replay some evaluations, one after the other."""
        for event in events:
            self.drop(event.dropped)
            self.evaluate(event.evaluated)

    def forget_peak(self) -> None:
        """The peak is looked for anew from here on, as by `mx.reset_peak_memory`."""
        self.peak, self.at_peak = self.active, dict(self._now)

    def drop(self, arrays: Iterable[Array]) -> None:
        """Let go of handles: of inputs, constants or outputs."""
        for array in arrays:
            self._release(array)

    def evaluate(self, arrays: Sequence[Array]) -> None:
        """What `mx.eval` of these arrays does."""
        for array in arrays:
            array.uses += 1
        for node in evaluation_order(arrays):
            self._run(node)
        self._land(self._dispatched)
        for array in arrays:
            self._release(array)

    def _run(self, node: Node) -> None:
        inputs, outputs = node.inputs, node.outputs
        held = [array.buffer for array in inputs]
        for buffer in held:
            buffer.holds += 1
        flying = self._make(node)
        # What the output shares is held by it alone, so that the next operation may write there.
        mine = outputs[0].buffer
        self._dispatched += 1 + (node.name not in _VIEWS) + len(flying)
        for buffer in held:
            if buffer is mine:
                buffer.holds -= 1
            else:
                flying.append(buffer)
        self._flying.append((self._dispatched, flying))
        for output in outputs:
            output.node = None
            output.uses += 1  # one that nobody asked for goes as soon as it has come
        for array in inputs:
            self._release(array)
        for output in outputs:
            self._release(output)
        self._land(_PER_TASK * (self._dispatched // _PER_TASK - _TASKS))

    def _make(self, node: Node) -> list[_Buffer]:
        """Give an operation's outputs their buffers; returns those it needs on the side."""
        first = node.outputs[0]
        if node.name in _VIEWS and self._view(node):
            return []
        if node.name in _PRODUCTS:
            sides = [self._new(a, OTHER) for a in node.inputs if not fits_gemm(a)]
            for buffer in sides:
                buffer.holds += 1
            self._give(first, self._new(first))
            return sides
        donors: Sequence[Array] = ()
        if node.name in _ELEMENTWISE:
            donors = node.inputs
        elif node.name in _INTO_FIRST:
            donors = node.inputs[:1]
        for donor in donors:
            if _is_donatable(donor, first):
                self._give(first, donor.buffer, donor.layout)
                return []
        for output in node.outputs:
            self._give(output, self._new(output))
        return []

    def _view(self, node: Node) -> bool:
        """Let outputs share the first input's buffer; False where that takes a copy."""
        if node.name in ("Depends", "Split", "View", "AsStrided"):
            sources = node.inputs if node.name == "Depends" else node.inputs[:1] * len(node.outputs)
            for output, source in zip(node.outputs, sources, strict=False):
                same = source.shape == output.shape
                self._give(output, source.buffer, source.layout if same else None)
            return True
        source, output = node.inputs[0], node.outputs[0]
        layout = None
        if source.layout is not None or node.name not in _RESHAPES:
            layout = viewed(node, source, output)
            if layout is None:
                return False
        self._give(output, source.buffer, layout)
        return True

    def _new(self, array: Array, name: str | None = None) -> _Buffer:
        nbytes, tag = array.nbytes, name or array.name or OTHER
        self.active += nbytes
        self._now[tag] += nbytes
        if self.active > self.peak:
            self.peak, self.at_peak = self.active, dict(self._now)
        return _Buffer(nbytes, tag)

    def _give(self, array: Array, buffer: _Buffer, layout: Layout | None = None) -> None:
        name = array.name
        # A view of the weights is still weights, whatever its shape; an update is something new.
        if name is not None and (buffer.tag == OTHER or name in self._lasting):
            self._now[buffer.tag] -= buffer.nbytes
            self._now[name] += buffer.nbytes
            buffer.tag = name
        array.buffer, array.layout = buffer, layout
        buffer.holds += 1

    def _unhold(self, buffer: _Buffer) -> None:
        buffer.holds -= 1
        if buffer.holds == 0:
            self.active -= buffer.nbytes
            self._now[buffer.tag] -= buffer.nbytes

    def _release(self, array: Array) -> None:
        array.uses -= 1
        if array.uses:
            return
        if array.buffer is not None:
            self._unhold(array.buffer)
            array.buffer = array.layout = None
            return
        unneeded = [array]  # never computed, and neither is what was there for it alone
        while unneeded:
            node = unneeded.pop().node
            if node is None or any(output.uses for output in node.outputs):
                continue
            for each in node.inputs:
                if each.buffer is not None or each.uses > 1:
                    self._release(each)
                else:
                    each.uses -= 1
                    unneeded.append(each)

    def _land(self, dispatch: int) -> None:
        """The device has run everything up to a dispatch."""
        flying = self._flying
        while flying and flying[0][0] <= dispatch:
            for buffer in flying.popleft()[1]:
                self._unhold(buffer)


# How an array lies in its buffer: a strided view over nothing, which takes no memory, or None for
# row order, which most are in.


def dense(array: Array) -> Layout:
    """A layout in row order."""
    strides, step = [], array.itemsize
    for size in reversed(array.shape):
        strides.append(step)
        step *= size
    whole = np.lib.stride_tricks.as_strided(
        np.zeros(1, f"V{array.itemsize}"), array.shape, strides[::-1], writeable=False
    )
    return whole


def viewed(node: Node, source: Array, output: Array) -> Layout | None:
    """The layout of a view; None where the elements have to be moved."""
    arguments = node.arguments
    layout = dense(source) if source.layout is None else source.layout
    if node.name == "Transpose":
        return layout.transpose(arguments[0])
    if node.name == "Broadcast":
        return np.broadcast_to(layout, output.shape)
    if node.name == "Slice":
        starts, stops, steps = arguments
        return layout[tuple(map(slice, starts, stops, steps))]
    if node.name == "Contiguous" and not layout.flags.c_contiguous:
        return None
    if layout.shape == output.shape:
        return layout
    try:
        return np.reshape(layout, output.shape, copy=False)
    except ValueError:
        return None


def fits_gemm(array: Array) -> bool:
    """Whether a product can read a matrix as it lies, row after row or column after column."""
    layout = array.layout
    if layout is None or layout.ndim < 2:
        return True
    rows, columns = layout.shape[-2:]
    down, across = (step // layout.itemsize for step in layout.strides[-2:])
    return (down == columns and across == 1) or (down == 1 and across == rows)


def _is_donatable(donor: Array, output: Array) -> bool:
    layout = donor.layout
    return (
        donor.uses == 1
        and donor.buffer.holds == 2  # the array, and this operation
        and donor.itemsize == output.itemsize
        and donor.shape == output.shape
        and donor.buffer.nbytes <= output.nbytes + 16384
        and (layout is None or layout.flags.c_contiguous or layout.flags.f_contiguous)
    )


def evaluation_order(outputs: Sequence[Array]) -> list[Node]:
    """Operations in the order `mx.eval` runs them: breadth first from the outputs, reversed."""
    degree = _degrees(outputs)
    root = Node("Synchronizer", list(outputs), [])
    tape, at = [root], 0
    stack: list[tuple[Node, int]] = []  # put off, with the input to go on from
    while degree and (at < len(tape) or stack):
        if at >= len(tape):
            node, start = stack.pop()
        else:
            node, start = tape[at], 0
            at += 1
        for place in range(start, len(node.inputs)):
            array = node.inputs[place]
            if array.buffer is not None:
                continue
            if len(tape) - at >= _WIDTH:
                stack.append((node, place))
                break
            assert array.node is not None
            degree[array.node] -= 1
            if not degree[array.node]:
                del degree[array.node]
                tape.append(array.node)
    return tape[:0:-1]


def _degrees(outputs: Sequence[Array]) -> dict[Node, int]:
    degree: dict[Node, int] = {}
    stack = [a for a in outputs if a.buffer is None]
    while stack:
        node = stack.pop().node
        assert node is not None
        if node in degree:
            degree[node] += 1
            continue
        degree[node] = 1
        stack += [a for a in node.inputs if a.buffer is None]
    return degree
