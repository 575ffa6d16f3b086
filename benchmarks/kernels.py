"""A traced graph computed kernel by kernel, each with the CPU seconds it takes.

MLX tells nothing of what a kernel costs. So its graph is walked in the order of its evaluation,
every operation is built again, alone, and evaluated at once. The results are those of the whole.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from benchmarks.measure import now
from mlx_dpo.memory.graph import Array, Node
from mlx_dpo.memory.recorder import Recording
from mlx_dpo.memory.replay import evaluation_order

Arrays = list[mx.array]
_REDUCTIONS = {2: mx.sum, 4: mx.min, 5: mx.max}  # MLX's numbers of them


class Computation:
    """Computes a recording, event by event.

    Args:
        recording: Its events say what is evaluated when.
        inputs: The arrays it was traced on, in order; they are kept.

    Attributes:
        values: What is computed and still needed.
    """

    def __init__(self, recording: Recording, inputs: Sequence[mx.array]) -> None:
        self.recording = recording
        graph = recording.graph
        self.values: dict[Array, mx.array] = dict(zip(graph.inputs, inputs, strict=True))
        for constant in graph.constants:
            assert constant.value is not None
            self.values[constant] = constant.value
        for array in self.values:
            array.buffer = True  # it is there: the order of evaluation goes by this
        self._uses = Counter(array for node in graph.nodes() for array in node.inputs)
        self._uses.update(graph.outputs)

    def run(self, computed: Callable[[int, Node, float], None]) -> None:
        """Compute all events; `computed` gets the event, the operation and its seconds."""
        for number, event in enumerate(self.recording.events):
            for node in evaluation_order(event.evaluated):
                seconds = self._compute(node)
                computed(number, node, seconds)

    def _compute(self, node: Node) -> float:
        inputs = [self.values[array] for array in node.inputs]
        for array in node.inputs:
            self._uses[array] -= 1
            if not self._uses[array]:
                del self.values[array]  # what nobody else needs is written into
        outputs = _build(node, inputs)
        inputs.clear()
        start = now()
        mx.eval(outputs)
        seconds = now() - start
        for array, output in zip(node.outputs, outputs, strict=True):
            if output.shape != array.shape:
                raise RuntimeError(f"{node.name} gave {output.shape}, not {array.shape}")
            array.buffer = True
            if self._uses[array]:
                self.values[array] = output
        return seconds


def _build(node: Node, inputs: Arrays) -> Arrays:
    """The operation again, on these arrays; not evaluated."""
    name, arguments = node.name, node.arguments
    if name in _PLAIN:
        return [_PLAIN[name](*inputs)]
    if name == "Split":
        return list(mx.split(inputs[0], list(arguments[0]), axis=arguments[1]))
    return [_WITH_ARGUMENTS[name](inputs, arguments, node.outputs[0])]


def _gather(inputs: Arrays, arguments: list[Any], output: Array) -> mx.array:
    source, *indices = inputs
    (axis,), _ = arguments
    taken = mx.take(source, indices[0], axis=axis)
    # MLX leaves an axis of one where the index was, behind the axes of the index.
    return taken.reshape(output.shape)


def _scatter(inputs: Arrays, arguments: list[Any], output: Array) -> mx.array:
    source, index, updates = inputs
    return source.at[index].add(updates.reshape(*index.shape, *source.shape[1:]))


_PLAIN: dict[str, Callable[..., mx.array]] = {
    "Abs": mx.abs,
    "Add": mx.add,
    "AddMM": lambda a, b, c: mx.addmm(c, a, b),
    "BitwiseBinary": mx.bitwise_and,
    "Copy": lambda x: x,
    "Cos": mx.cos,
    "Divide": mx.divide,
    "Equal": mx.equal,
    "Exp": mx.exp,
    "Greater": mx.greater,
    "GreaterEqual": mx.greater_equal,
    "Less": mx.less,
    "Log": mx.log,
    "LogAddExp": mx.logaddexp,
    "LogicalAnd": mx.logical_and,
    "LogicalNot": mx.logical_not,
    "Matmul": mx.matmul,
    "Maximum": mx.maximum,
    "Minimum": mx.minimum,
    "Multiply": mx.multiply,
    "Negative": mx.negative,
    "Power": mx.power,
    "Select": mx.where,
    "Sigmoid": mx.sigmoid,
    "Sin": mx.sin,
    "Square": mx.square,
    "StopGradient": lambda x: x,
    "Subtract": mx.subtract,
    "Tanh": mx.tanh,
}
_WITH_ARGUMENTS: dict[str, Callable[[Arrays, list[Any], Array], mx.array]] = {
    "Arange": lambda x, a, o: mx.arange(*a).astype(mx.float32),
    "AsType": lambda x, a, o: x[0].astype(a[0]),
    "Broadcast": lambda x, a, o: mx.broadcast_to(x[0], o.shape),
    "Concatenate": lambda x, a, o: mx.concatenate(x, axis=a[0]),
    "Depends": lambda x, a, o: x[0],
    "ExpandDims": lambda x, a, o: x[0].reshape(o.shape),
    "Flatten": lambda x, a, o: mx.flatten(x[0], *a),
    "Full": lambda x, a, o: mx.full(o.shape, x[0]),
    "Gather": _gather,
    "GatherAxis": lambda x, a, o: mx.take_along_axis(x[0], x[1], axis=a[0]),
    "LogSumExp": lambda x, a, o: mx.logsumexp(x[0], axis=-1, keepdims=True),
    "Pad": lambda x, a, o: mx.pad(x[0], list(zip(a[1], a[2], strict=True)), constant_values=x[1]),
    "Reduce": lambda x, a, o: _REDUCTIONS[a[0]](x[0], axis=list(a[1]), keepdims=True),
    "Reshape": lambda x, a, o: x[0].reshape(o.shape),
    "Scatter": _scatter,
    "ScatterAxis": lambda x, a, o: mx.put_along_axis(x[0], x[1], x[2], axis=a[1]),
    "Slice": lambda x, a, o: x[0][tuple(map(slice, *a))],
    "SliceUpdate": lambda x, a, o: mx.slice_update(
        x[0], x[1], mx.array(a[1]), list(range(len(a[1])))
    ),
    "Softmax": lambda x, a, o: mx.softmax(x[0], axis=-1, precise=a[0]),
    "Sqrt": lambda x, a, o: mx.rsqrt(x[0]) if a[0] else mx.sqrt(x[0]),
    "Squeeze": lambda x, a, o: x[0].reshape(o.shape),
    "Transpose": lambda x, a, o: mx.transpose(x[0], a[0]),
    "Unflatten": lambda x, a, o: x[0].reshape(o.shape),
}
