"""A traced computation, replayed without computing: when each buffer comes, and when it goes.

The rules are MLX's own. An evaluation puts what it needs in order (breadth first, at most 20 wide),
views share a buffer, an operation writes into its input where nobody else needs it, and what was
scheduled is held until the device has run it, up to some hundred operations later.
"""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.memory.graph import Array, Graph, Node

# --- How an array lies in its buffer: strided views over nothing, which take
# no memory.


Layout = npt.NDArray[Any]


def dense(array: Array) -> Layout:
    """A layout in row order, which takes no memory of its own."""
    strides, step = [], array.itemsize
    for size in reversed(array.shape):
        strides.append(step)
        step *= size
    whole = np.lib.stride_tricks.as_strided(
        np.zeros(1, f"V{array.itemsize}"), array.shape, strides[::-1], writeable=False
    )
    return whole


def viewed(node: Node, layout: Layout, output: Array) -> Layout | None:
    """The layout of a view; None where the elements have to be moved."""
    arguments = node.arguments
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


def fits_gemm(layout: Layout) -> bool:
    """Whether a product can read a matrix as it lies, row after row or column after column."""
    if layout.ndim < 2:
        return True
    rows, columns = layout.shape[-2:]
    down, across = (step // layout.itemsize for step in layout.strides[-2:])
    return (down == columns and across == 1) or (down == 1 and across == rows)


_PER_TASK, _TASKS = 10, 10  # dispatches a task, and tasks that may wait for the device

_VIEWS = {
    *("Broadcast", "ExpandDims", "Squeeze", "Transpose", "Slice", "Split", "StopGradient"),
    *("Depends", "Copy", "Flatten", "Unflatten", "Reshape", "Contiguous", "AsStrided", "View"),
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

OTHER = "activations"


class _Buffer:
    __slots__ = ("holds", "nbytes", "tag")

    def __init__(self, nbytes: int, tag: str) -> None:
        self.nbytes = nbytes
        self.holds = 0
        self.tag = tag


class Replay:
    """Evaluates a graph on paper.

    Args:
        graph: The computation.
        held: Names of what its inputs are, one for each.
        names: What else has a name; all other buffers are `OTHER`.

    Attributes:
        active: Bytes in use.
        peak: Most bytes that were in use at once.
        at_peak: Bytes by name at that moment.
    """

    def __init__(self, graph: Graph, held: Sequence[str], names: dict[Array, str]) -> None:
        self.active = 0
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self._now: Counter[str] = Counter()
        self._names = names
        self._lasting = set(held)
        self._uses: Counter[Array] = Counter()  # references to an array: handles and operations
        self._buffers: dict[Array, _Buffer] = {}
        self._layouts: dict[Array, Layout] = {}
        self._flying: list[tuple[int, list[_Buffer]]] = []
        self._dispatched = 0
        self._count_uses(graph.outputs)
        for array, tag in zip(graph.inputs, held, strict=True):
            self._give(array, self._new(array.nbytes, tag), dense(array))
        for array in graph.constants:
            self._give(array, self._new(array.nbytes, OTHER), dense(array))
        for array in (*graph.inputs, *graph.constants, *graph.outputs):
            self._uses[array] += 1  # a handle

    def drop(self, arrays: Iterable[Array]) -> None:
        """Let go of handles: of inputs, constants or outputs."""
        for array in arrays:
            self._release(array)

    def evaluate(self, arrays: Sequence[Array]) -> None:
        """What `mx.eval` of these arrays does."""
        for array in arrays:
            self._uses[array] += 1
        for node in evaluation_order(arrays, self._buffers):
            self._run(node)
        self._land(self._dispatched)
        for array in arrays:
            self._release(array)

    def _count_uses(self, outputs: Sequence[Array]) -> None:
        seen: set[Node] = set()
        stack = [a.node for a in outputs]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            self._uses.update(node.inputs)
            stack += [a.node for a in node.inputs]

    def _run(self, node: Node) -> None:
        inputs, held = list(node.inputs), [self._buffers[a] for a in node.inputs]
        for buffer in held:
            buffer.holds += 1
        temporaries = self._make(node)
        for output in node.outputs:  # one that nobody asked for goes as it came
            self._uses[output] += 1
        # What the output shares is held by it alone, so that the next operation may write there.
        mine = self._buffers[node.outputs[0]]
        for buffer in held:
            if buffer is mine:
                buffer.holds -= 1
        flying = [*(buffer for buffer in held if buffer is not mine), *temporaries]
        self._dispatched += 1 + (node.name not in _VIEWS) + len(temporaries)
        self._flying.append((self._dispatched, flying))
        for output in node.outputs:
            output.node = None
        for array in inputs:
            self._release(array)
        for output in node.outputs:
            self._release(output)
        self._land(_PER_TASK * (self._dispatched // _PER_TASK - _TASKS))

    def _make(self, node: Node) -> list[_Buffer]:
        """Give an operation's outputs their buffers; returns those it needs on the side."""
        first = node.outputs[0]
        if node.name in _VIEWS and self._view(node):
            return []
        if node.name in _PRODUCTS:
            sides = [self._new(a.nbytes) for a in node.inputs if not fits_gemm(self._layouts[a])]
            for buffer in sides:
                buffer.holds += 1
            self._give(first, self._new(first.nbytes, self._name(first)), dense(first))
            return sides
        donors: Sequence[Array] = ()
        if node.name in _ELEMENTWISE:
            donors = node.inputs
        elif node.name in _INTO_FIRST:
            donors = node.inputs[:1]
        for donor in donors:
            if self._is_donatable(donor, first):
                self._give(first, self._buffers[donor], self._layouts[donor])
                return []
        for output in node.outputs:
            self._give(output, self._new(output.nbytes, self._name(output)), dense(output))
        return []

    def _view(self, node: Node) -> bool:
        """Let outputs share the first input's buffer; False where that takes a copy."""
        if node.name in ("Depends", "Split", "View", "AsStrided"):
            sources = node.inputs if node.name == "Depends" else node.inputs[:1] * len(node.outputs)
            for output, source in zip(node.outputs, sources, strict=False):
                layout = self._layouts[source]
                same = layout.shape == output.shape
                self._give(output, self._buffers[source], layout if same else dense(output))
            return True
        output = node.outputs[0]
        seen = viewed(node, self._layouts[node.inputs[0]], output)
        if seen is None:
            return False
        self._give(output, self._buffers[node.inputs[0]], seen)
        return True

    def _is_donatable(self, donor: Array, output: Array) -> bool:
        buffer, layout = self._buffers[donor], self._layouts[donor]
        return (
            self._uses[donor] == 1
            and buffer.holds == 2  # the array, and this operation
            and donor.itemsize == output.itemsize
            and donor.shape == output.shape
            and buffer.nbytes <= output.nbytes + 16384
            and layout.size * layout.itemsize == output.nbytes
            and (layout.flags.c_contiguous or layout.flags.f_contiguous)
        )

    def _name(self, array: Array) -> str:
        return self._names.get(array, OTHER)

    def _new(self, nbytes: int, tag: str = OTHER) -> _Buffer:
        self.active += nbytes
        self._now[tag] += nbytes
        if self.active > self.peak:
            self.peak, self.at_peak = self.active, dict(self._now)
        return _Buffer(nbytes, tag)

    def _give(self, array: Array, buffer: _Buffer, layout: Layout) -> None:
        name = self._names.get(array)
        # What a view of the weights looks like does not make it anything else; an update does.
        if name is not None and (buffer.tag == OTHER or name in self._lasting):
            self._now[buffer.tag] -= buffer.nbytes
            self._now[name] += buffer.nbytes
            buffer.tag = name
        self._buffers[array], self._layouts[array] = buffer, layout
        buffer.holds += 1

    def _unhold(self, buffer: _Buffer) -> None:
        buffer.holds -= 1
        if buffer.holds == 0:
            self.active -= buffer.nbytes
            self._now[buffer.tag] -= buffer.nbytes

    def _release(self, array: Array) -> None:
        stack = [array]
        while stack:
            one = stack.pop()
            self._uses[one] -= 1
            if self._uses[one]:
                continue
            del self._uses[one]
            if one in self._buffers:
                self._unhold(self._buffers.pop(one))
                del self._layouts[one]
            elif one.node is not None and not any(a in self._uses for a in one.node.outputs):
                stack += one.node.inputs

    def _land(self, dispatch: int) -> None:
        """The device has run everything up to a dispatch."""
        while self._flying and self._flying[0][0] <= dispatch:
            for buffer in self._flying.pop(0)[1]:
                self._unhold(buffer)


# --- In which order an evaluation runs its operations, as MLX decides it.


_WIDTH = 20  # of the breadth-first order, MLX_BFS_MAX_WIDTH


def evaluation_order(outputs: Sequence[Array], done: Container[Array]) -> list[Node]:
    """Operations in the order `mx.eval` runs them: breadth first from the outputs, reversed."""
    degree = _degrees(outputs, done)
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
            if array in done:
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


def _degrees(outputs: Sequence[Array], done: Container[Array]) -> dict[Node, int]:
    degree: dict[Node, int] = {}
    stack = [a for a in outputs if a not in done]
    while stack:
        array = stack.pop()
        node = array.node
        assert node is not None
        if node in degree:
            degree[node] += 1
            continue
        degree[node] = 1
        stack += [a for a in node.inputs if a not in done]
    return degree
