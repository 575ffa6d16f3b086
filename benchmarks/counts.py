"""What a step asks of a machine, counted from its graph: the same on every CPU.

Seconds depend on a processor. Products, bytes and kernels do not: they carry over to a Mac, and a
test holds them fast.
"""

from collections.abc import Callable
from typing import NamedTuple

from mlx_dpo.memory.graph import Array, Graph, Node
from mlx_dpo.memory.recorder import Recording

# They compute nothing, and seldom copy.
VIEWS = {
    *("Broadcast", "ExpandDims", "Squeeze", "Transpose", "Slice", "Split", "StopGradient"),
    *("Depends", "Copy", "Flatten", "Unflatten", "Reshape", "Contiguous", "AsStrided", "View"),
}


class Counts(NamedTuple):
    """What a computation takes.

    Attributes:
        flops: Of matrix products, a multiplication and an addition counted as two.
        bytes_moved: Read and written by kernels; a view of an array is what it shows, once.
        kernels: Operations that compute, views left out.
        waits: Calls of `mx.eval`.
    """

    flops: int
    bytes_moved: int
    kernels: int
    waits: int

    def __add__(self, other: tuple[int, ...]) -> "Counts":  # type: ignore[override]
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def counted(recording: Recording) -> Counts:
    """Counts of a traced step."""
    size = moved_by(recording.graph)
    total = Counts(0, 0, 0, len(recording.events))
    for node in recording.graph.nodes():
        if node.name not in VIEWS:
            total += Counts(flops(node), size(node), 1, 0)
    return total


def flops(node: Node) -> int:
    """Of a matrix product; other operations count as none."""
    if node.name not in ("Matmul", "AddMM"):
        return 0
    output, inner = node.outputs[0], node.inputs[0].shape[-1]
    return 2 * inner * output.nbytes // output.itemsize


def moved_by(graph: Graph) -> Callable[[Node], int]:
    """A function that counts the bytes which an operation of a graph reads and writes."""
    shown: dict[Array, int] = {}  # bytes below a view: a broadcast shows more than there are

    def held(array: Array) -> int:
        chain = [array]
        while (node := chain[-1].node) is not None and node.name in VIEWS and node.inputs:
            if chain[-1] in shown:
                break
            chain.append(node.inputs[0])
        least = shown.get(chain[-1], chain[-1].nbytes)
        for each in reversed(chain):
            least = shown[each] = min(least, each.nbytes)
        return least

    def moved(node: Node) -> int:
        return sum(map(held, node.inputs)) + sum(output.nbytes for output in node.outputs)

    return moved
