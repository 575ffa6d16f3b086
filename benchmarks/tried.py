"""What was tried to make a step faster and is not built: ``python -m benchmarks.tried``.

Prints what docs/engine.md says of it: a compiled step, a compiled update, activations and attention
with gradients of our own, what an exponential costs, and how many tokens both responses of a pair
begin with. About fifteen minutes with one BLAS thread; ``--quick`` takes a tiny model.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx_lm.models import llama
from tokenizers import Tokenizer

from benchmarks.measure import now
from benchmarks.step import gradient
from benchmarks.workload import MAX_SEQ_LEN, PAIRS_PER_STEP, SHAPES, Shape, make_batches, make_model
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.training.paths import FastPath

PATH = FastPath(MAX_SEQ_LEN, 0)
REPOSITORY = Path(__file__).resolve().parent.parent
MODEL, PAIRS = REPOSITORY / "checkpoints" / "tiny-sft", REPOSITORY / "data/dpo/preferences.json"
TINY = Shape(hidden=32, layers=2, heads=2, kv_heads=1, mlp=64, vocabulary=128)


def same_beginnings(file: str) -> str:
    """How much of the responses a prefix that both have in common would save."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    saved = total = 0
    for pair in read_preferences(file):
        chosen, rejected = (
            tokenizer.encode(turns[0].content, add_special_tokens=False).ids
            for turns in (pair.chosen, pair.rejected)
        )
        same = takewhile(lambda ids: ids[0] == ids[1], zip(chosen, rejected, strict=False))
        saved += len(list(same))
        total += len(chosen) + len(rejected)
    return (
        f"{file}: both begin with {saved} of the {total} tokens of responses, {saved / total:.1%}"
    )


def num_layouts(shape: Shape, num_batches: int) -> str:
    """How many traces a compiled step would need, were widths and counts all that matters."""
    shapes = set()
    for batch in make_batches(shape, num_batches):
        layout = PATH.layout(batch)
        groups = (layout.context_groups, layout.row_groups)
        shapes.add(tuple(tuple((len(g.members), g.width) for g in group) for group in groups))
    return f"distinct layouts of {num_batches} batches: {len(shapes)}"


def compiled_step(shape: Shape) -> str:
    """Loss and gradient of one batch, taken many times."""
    model, (batch,) = make_model(shape), make_batches(shape, 1)
    eager = partial(gradient, model, PATH, batch)
    state = [model.state]
    compiled = mx.compile(eager, inputs=state, outputs=state)
    return _side_by_side("step", eager, compiled, mx.zeros((2, PAIRS_PER_STEP)))


def compiled_update(shape: Shape) -> str:
    """AdamW's update, whose shapes never change."""
    _, grads = gradient(
        make_model(shape), PATH, make_batches(shape, 1)[0], mx.zeros((2, PAIRS_PER_STEP))
    )
    mx.eval(grads)

    def updating() -> tuple[Callable[[Any], Any], list[Any]]:
        model = make_model(shape)
        optimizer = optim.AdamW(learning_rate=1e-3, bias_correction=True)
        optimizer.init(model.trainable_parameters())
        mx.eval(optimizer.state)

        def update(gradients: Any) -> Any:
            optimizer.update(model, gradients)

        return update, [model, optimizer]

    updates = []
    for compile_it in (False, True):
        update, (model, optimizer) = updating()
        state = [model.state, optimizer.state]
        if compile_it:
            update = mx.compile(update, inputs=state, outputs=state)

        def whole(
            gradients: Any, update: Any = update, model: nn.Module = model, opt: Any = optimizer
        ) -> Any:
            update(gradients)
            return model.parameters(), opt.state

        updates.append(whole)
    return _side_by_side("update", updates[0], updates[1], grads)


def own_gradients(shape: Shape, rounds: int = 4) -> str:
    """Gradients of activations and attention that make fewer passes, by turns with MLX's own."""
    model = make_model(shape)
    swiglu, attention = "mlx_lm.models.llama.swiglu", "mlx.core.fast.scaled_dot_product_attention"
    patches: dict[str, tuple[str, Any]] = {
        "MLX's": (swiglu, llama.swiglu),
        "activations": (swiglu, _swiglu),
        "attention": (attention, _attention),
        "attention in two blocks": (attention, _in_blocks),
    }
    seconds: dict[str, list[float]] = {name: [] for name in patches}
    peaks = dict.fromkeys(seconds, 0)
    for batch in make_batches(shape, rounds):
        for name, each in seconds.items():
            mx.clear_cache()
            mx.reset_peak_memory()
            start = now()
            with mock.patch(*patches[name]):
                mx.eval(gradient(model, PATH, batch, mx.zeros((2, PAIRS_PER_STEP))))
            each.append(now() - start)
            peaks[name] = max(peaks[name], mx.get_peak_memory())
    plain, least = seconds["MLX's"], peaks["MLX's"]
    return "gradients of our own ÷ MLX's: " + "; ".join(
        f"{name} {median(a / b for a, b in zip(seconds[name], plain, strict=True)):.3f}, peak "
        f"{peaks[name] / least:.2f}"
        for name in list(patches)[1:]
    )


def exponentials(count: int) -> str:
    """Nanoseconds an element of what a step computes."""
    x = mx.random.normal((count // 1024, 1024))
    mx.eval(x)
    found = []
    functions: dict[str, Callable[[], mx.array]] = {
        "a product": lambda: x * x,
        "exp": lambda: mx.exp(x),
        "a power": lambda: mx.power(2.0, x),
        "sigmoid": lambda: mx.sigmoid(x),
        "softmax": lambda: mx.softmax(x, axis=-1),
    }
    for name, function in functions.items():
        mx.eval(function())
        start = now()
        mx.eval(function())
        found.append(f"{name} {1e9 * (now() - start) / x.size:.1f}")
    return f"ns an element: {', '.join(found)}"


def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """Keeps the sigmoid, and not its product with the gate."""

    @mx.custom_function
    def forward(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
        sigmoid = mx.sigmoid(gate)
        return gate * sigmoid * x, sigmoid

    @forward.vjp
    def backward(inputs: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        (gate, x), (by_output, _), (_, sigmoid) = inputs, cotangents, outputs
        silu = gate * sigmoid
        return [by_output * x * (sigmoid + silu * (1 - sigmoid)), by_output * silu]

    results: Any = forward(gate, x)
    return results[0]  # type: ignore[no-any-return]


def _attention(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any, **_: Any) -> Any:
    """Keeps the probabilities, adds its mask, and sums over a head's size, not over all keys."""
    return _attended(q, k, v, scale, _bias(q, k, mask))


def _in_blocks(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any, **_: Any) -> Any:
    """The same; the first half of the queries reads no keys that are masked for all of it."""
    bias, half = _bias(q, k, mask), q.shape[2] // 2
    end = k.shape[2] - q.shape[2] + half
    if not half:
        return _attended(q, k, v, scale, bias)
    first = _attended(q[:, :, :half], k[:, :, :end], v[:, :, :end], scale, bias[..., :half, :end])
    return mx.concatenate([first, _attended(q[:, :, half:], k, v, scale, bias[..., half:, :])], 2)


def _bias(q: mx.array, k: mx.array, mask: Any) -> mx.array:
    length, keys = q.shape[2], k.shape[2]
    if isinstance(mask, str):
        mask = mx.arange(keys - length, keys)[:, None] >= mx.arange(keys)
    return mx.where(mask, 0.0, -1e30)


def _attended(q: mx.array, k: mx.array, v: mx.array, scale: float, bias: mx.array) -> mx.array:
    groups = q.shape[1] // k.shape[1]
    folded = (*k.shape[:2], groups * q.shape[2], q.shape[3])  # heads that share keys, as more rows
    bias = mx.tile(bias, (groups, 1))

    @mx.custom_function
    def forward(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        scores = (q * scale).reshape(folded) @ k.swapaxes(-1, -2)
        weights = mx.softmax(scores + bias, axis=-1)
        return (weights @ v).reshape(q.shape), weights

    @forward.vjp
    def backward(inputs: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        (q, k, v), (by_output, _), (output, weights) = inputs, cotangents, outputs
        along = (by_output * output).sum(axis=-1, keepdims=True).reshape(*folded[:3], 1)
        by_output = by_output.reshape(folded)
        by_scores = (by_output @ v.swapaxes(-1, -2) - along) * weights
        rows = (q * scale).reshape(folded)
        return [
            (by_scores @ k).reshape(q.shape) * scale,
            by_scores.swapaxes(-1, -2) @ rows,
            weights.swapaxes(-1, -2) @ by_output,
        ]

    results: Any = forward(q, k, v)
    return results[0]  # type: ignore[no-any-return]


def _side_by_side(name: str, eager: Any, compiled: Any, argument: Any) -> str:
    begin = time.perf_counter()
    first_output, other = compiled(argument), eager(argument)
    mx.eval(first_output)
    first = time.perf_counter() - begin
    a, b = (named_arrays(output[1 if name == "step" else 0]) for output in (first_output, other))
    off = max(float(mx.abs(a[key] - b[key]).max()) for key in a)
    del first_output, other, a, b
    seconds: list[list[float]] = [[], []]
    peaks = [0, 0]
    for _ in range(3):
        for side, function in enumerate((eager, compiled)):
            mx.reset_peak_memory()
            start = now()
            mx.eval(function(argument))
            seconds[side].append(now() - start)
            peaks[side] = max(peaks[side], mx.get_peak_memory())
    return (
        f"{name}: eager {min(seconds[0]):.2f} s, compiled {min(seconds[1]):.2f} s, the first time "
        f"{first:.0f} s by the clock; peak {peaks[0] >> 20} and {peaks[1] >> 20} MiB; largest "
        f"difference {off:.1e}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--beginnings", metavar="FILE", help="count in this file, nothing else")
    options = parser.parse_args()
    if options.beginnings:
        print(same_beginnings(options.beginnings))
        return
    quick = options.quick
    shape = TINY if quick else SHAPES["A"]
    half = replace(shape, layers=shape.layers // 2)
    print(same_beginnings(str(PAIRS)), flush=True)
    print(num_layouts(shape, 250), flush=True)
    print(compiled_update(half), flush=True)
    print(own_gradients(shape), flush=True)
    print(exponentials(2**14 if quick else 2**22), flush=True)
    print(compiled_step(half), flush=True)


if __name__ == "__main__":
    main()
