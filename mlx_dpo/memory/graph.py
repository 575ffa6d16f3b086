"""The graph of a computation, from shapes alone: traced, and never evaluated.

MLX builds every computation as a graph before it runs it. `mx.export_function` hands over that
graph, operation by operation, with the shape of every array. So the code that trains is itself
looked at, whatever the architecture, and there is no formula for one.

`mx.checkpoint` can't be exported. While a graph is traced it is replaced by marks on the inputs and
outputs of its function, and the graph is rewritten to what `mx.checkpoint` would have built:
between the marks, what the gradient needs is computed again once the gradient of the outputs is
there.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_map

# Constants that mark: bfloat16 numbers, which every float type holds, too large to occur.
_FIRST_MARK = 0x6F00
_PACKED_PRODUCTS = ("QuantizedMatmul", "GatherQMM")


@dataclass(eq=False, slots=True)
class Array:
    """An array of a graph.

    Attributes:
        shape: Its shape.
        itemsize: Bytes of an element.
        node: The operation that makes it; None for an input, a constant, and once it has run.
        name: What it is, where that is known: weights, gradients and the like.
        uses: References to it, by handles and operations.
        buffer: Where its elements lie; None before it is computed.
        layout: Strided view over nothing, as its elements lie in the buffer; None for row order.
        value: The elements of a constant; None of all others.
    """

    shape: tuple[int, ...]
    itemsize: int
    node: "Node | None" = None
    name: str | None = None
    uses: int = 0
    buffer: Any = None
    layout: npt.NDArray[Any] | None = None
    value: mx.array | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its elements, were they all stored."""
        return prod(self.shape) * self.itemsize


@dataclass(eq=False, slots=True)
class Node:
    """An operation of a graph.

    Attributes:
        name: Name of MLX's primitive.
        inputs: What it reads, in order.
        outputs: What it makes.
        arguments: Its state: axes, shapes.
    """

    name: str
    inputs: list[Array]
    outputs: list[Array]
    arguments: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Graph:
    """A traced computation. Its replay marks its arrays: it is replayed once.

    Attributes:
        inputs: Arrays it was traced on, in order.
        constants: Arrays made on the way that hold data: token ids, numbers.
        outputs: The function's results, in order.
    """

    inputs: list[Array]
    constants: list[Array]
    outputs: list[Array]

    def nodes(self) -> Iterator[Node]:
        """Every operation that an output needs."""
        seen: set[Node] = set()
        stack = [a.node for a in self.outputs]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                yield node
                stack += [a.node for a in node.inputs]


def trace(function: Callable[..., Sequence[mx.array]], inputs: Sequence[mx.array]) -> Graph:
    """Trace a function of arrays; nothing is evaluated.

    Args:
        function: Called with as many arrays as `inputs`.
        inputs: Arrays of the right shape and type; they may be unevaluated.
    """
    arrays: dict[str, Array] = {}
    ends: dict[str, list[Array]] = {"inputs": [], "outputs": []}
    marks: dict[Array, int] = {}
    nodes: list[Node] = []

    def array(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        known = arrays.get(name)
        if known is None:
            known = arrays[name] = Array(tuple(shape), dtype.size)
        return known

    def receive(entry: dict[str, Any]) -> None:
        kind = entry["type"]
        if kind == "primitive":
            made = [array(*each) for each in entry["outputs"]]
            read = [array(*each) for each in entry["inputs"]]
            node = Node(entry["name"], read, made, entry["arguments"])
            for output in made:
                output.node = node
            nodes.append(node)
        elif kind in ends:
            ends[kind] = [array(*each) for each in entry[kind]]
        elif kind == "constants":
            for name, value in entry["constants"]:
                constant = array(name, value.shape, value.dtype)
                constant.value = value
                if (mark := _mark_of(value)) is not None:
                    marks[constant] = mark

    with _marked_checkpoints(), uncollected():
        mx.export_function(receive, function, *inputs)
    _unshare(nodes)
    traced_on = set(ends["inputs"])
    constants = [a for a in arrays.values() if a.node is None and a not in traced_on]
    outputs = _with_recomputation(nodes, marks, ends["outputs"]) if marks else ends["outputs"]
    graph = Graph(ends["inputs"], constants, outputs)
    _cast_apart(graph)
    return graph


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from walking a growing graph again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unshare(nodes: Iterable[Node], kind: str = "Full") -> None:
    """Give each reader of a filled array one of its own, as it has outside of an export.

    An export merges operations that are alike. Of those, only arrays of zeros are large, and
    what packed products cast.
    """
    taken: set[Array] = set()
    for node in nodes:
        for place, array in enumerate(node.inputs):
            if array.node is None or array.node.name != kind:
                continue
            if array in taken:
                copied = Array(array.shape, array.itemsize)
                copied.node = Node(kind, array.node.inputs, [copied], array.node.arguments)
                node.inputs[place] = copied
            taken.add(array)


def _cast_apart(graph: Graph) -> None:
    """Give each packed product casts of its own: it makes them itself."""
    products = [node for node in graph.nodes() if node.name in _PACKED_PRODUCTS]
    _unshare(products, "AsType")


@contextmanager
def _marked_checkpoints() -> Iterator[None]:
    """Put marks in place of `mx.checkpoint`."""
    original = mx.checkpoint
    count = 0

    def checkpoint(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal count
            region, count = count, count + 1
            marked = tree_map(lambda x: _marked(x, 2 * region), args)
            return tree_map(lambda x: _marked(x, 2 * region + 1), function(*marked))

        return call

    mx.checkpoint = checkpoint  # type: ignore[assignment]
    try:
        yield
    finally:
        mx.checkpoint = original


def _marked(x: Any, number: int) -> Any:
    """A product and a sum, whose gradient is the product alone; what has no gradient as it is."""
    if not isinstance(x, mx.array) or not mx.issubdtype(x.dtype, mx.floating):
        return x
    bits = np.array([(_FIRST_MARK + number) << 16], np.uint32)
    mark = mx.array(bits.view(np.float32)[0]).astype(x.dtype)
    return mark * x + mark


def _mark_of(value: mx.array) -> int | None:
    if value.size != 1 or value.dtype != mx.float32:
        return None
    bits = int(np.array(value).view(np.uint32).item()) >> 16
    return bits - _FIRST_MARK if _FIRST_MARK <= bits < 0x7F80 else None


class _Marks:
    """Where the marks of a graph are.

    Attributes:
        same: The array that each marked array stands for.
        entries: Marked inputs of a checkpointed function, by region.
        results: Its outputs, by region.
        cotangents: Gradients of its results, by region.
    """

    def __init__(self, nodes: Sequence[Node], marks: dict[Array, int]) -> None:
        self.same: dict[Array, Array] = {}
        self.entries: dict[int, list[Array]] = {}
        self.results: dict[int, list[Array]] = {}
        self.cotangents: dict[int, list[Array]] = {}
        marks = dict(marks)
        for node in nodes:  # a mark takes the shape of what it marks
            if len(node.inputs) == 1 and node.inputs[0] in marks:
                marks[node.outputs[0]] = marks[node.inputs[0]]
        products = {}
        for node in nodes:
            known = [a for a in node.inputs if a in marks]
            other = [a for a in node.inputs if a not in marks]
            if not known or len(other) != 1:
                continue
            mark, output = marks[known[0]], node.outputs[0]
            if node.name == "Multiply":
                products[output] = (mark, other[0])
            elif node.name == "Add" and other[0] in products:
                self.same[output] = products.pop(other[0])[1]
                if mark % 2:
                    self.results.setdefault(mark // 2, []).append(self.same[output])
                else:
                    self.entries.setdefault(mark // 2, []).append(output)
        for output, (mark, other_one) in products.items():
            self.same[output] = other_one
            if mark % 2:
                self.cotangents.setdefault(mark // 2, []).append(other_one)

    def unmarked(self, array: Array) -> Array:
        """The array without its marks."""
        while array in self.same:
            array = self.same[array]
        return array


def _with_recomputation(
    nodes: Sequence[Node], marks: dict[Array, int], outputs: Sequence[Array]
) -> list[Array]:
    """Rewrite a marked graph to what `mx.checkpoint` builds; returns its outputs."""
    marked = _Marks(nodes, marks)
    owner = _owners(nodes, marked)
    again: dict[Array, Array] = {}  # what is computed a second time
    for region, entries in marked.entries.items():
        sources = [marked.unmarked(a) for a in entries]
        # It holds the function's outputs, and waits for their gradients.
        after = [*marked.results.get(region, []), *marked.cotangents.get(region, [])]
        waits = [marked.unmarked(a) for a in after]
        repeated = [Array(a.shape, a.itemsize) for a in entries]
        gate = Node("Depends", [*sources, *waits], repeated)
        for entry, copy in zip(entries, repeated, strict=True):
            copy.node, again[entry] = gate, copy

    def seen_from(node: Node, array: Array) -> Array:
        region = owner.get(array.node) if array.node is not None else None
        outside = region is not None and owner.get(node) != region
        return again[array] if outside else marked.unmarked(array)

    for node in nodes:
        if node in owner:
            copies = [Array(a.shape, a.itemsize) for a in node.outputs]
            inputs = [again.get(a) or marked.unmarked(a) for a in node.inputs]
            second = Node(node.name, inputs, copies, node.arguments)
            for output, copy in zip(node.outputs, copies, strict=True):
                copy.node, again[output] = second, copy
    for node in nodes:
        node.inputs = [
            marked.unmarked(a) if a in marked.same else seen_from(node, a) for a in node.inputs
        ]
    return [marked.unmarked(a) for a in outputs]


def _owners(nodes: Sequence[Node], marked: _Marks) -> dict[Node, int]:
    """The region of each operation between marks: from its results back to its entries."""
    owner: dict[Node, int] = {}
    numbers = {node: number for number, node in enumerate(nodes)}
    for region, entries in marked.entries.items():
        below: set[Node] = set()
        stack = [a.node for a in marked.results.get(region, [])]
        inside = set(entries)
        while stack:
            node = stack.pop()
            if node is not None and node not in below:
                below.add(node)
                stack += [a.node for a in node.inputs if a not in inside]
        reached = set(inside)
        for node in sorted(below & numbers.keys(), key=numbers.__getitem__):
            if any(a in reached for a in node.inputs):
                reached.update(node.outputs)
                owner[node] = region
    return owner
