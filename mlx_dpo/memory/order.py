"""In which order an evaluation runs its operations, as MLX decides it."""

from collections.abc import Container, Sequence

from mlx_dpo.memory.graph import Array, Node

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
