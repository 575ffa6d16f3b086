"""What was tried to make a step faster and is not built: ``python -m benchmarks.tried``.

Prints what docs/engine.md says of it: a compiled step, a compiled update, and how many tokens both
responses of a pair begin with. About fifteen minutes with one BLAS thread; ``--quick`` takes a tiny
model.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
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
    print(compiled_step(half), flush=True)


if __name__ == "__main__":
    main()
