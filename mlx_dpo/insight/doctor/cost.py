"""What a run costs here: memory against the plan, seconds a step, the price of one more forward."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.insight.doctor.bench import LOOK, OK, Batch, Bench, Outcome
from mlx_dpo.memory.predict import Predictor
from mlx_dpo.memory.settings import Settings, Workload
from mlx_dpo.training.paths import FastPath, ScoringPath

TIMES = 3  # measurements of which the shortest counts, after one that does not
STEPS = 2  # in which memory is measured
GOOD_RATIO = (0.9, 1.05)  # measured over predicted peak


def memory(bench: Bench) -> Outcome:
    """Peak of a run's self-check, start and steps against the plan's prediction."""
    gc.collect()
    mx.clear_cache()
    specimen, before = bench.specimen, mx.get_active_memory()
    bench.reference  # noqa: B018  # computed now: it is no part of what is measured
    mx.reset_peak_memory()
    policy = bench.loaded()
    trainer = bench.trainer(policy, path=bench.choose(policy).path)
    trainer.check_start()
    for _ in range(STEPS):
        trainer.train_step()
    measured, cached = mx.get_peak_memory() - before, mx.get_cache_memory()
    workload = Workload(
        specimen.make, specimen.examples, specimen.max_length, specimen.pad_id, steps=STEPS
    )
    predicted = Predictor(workload)(Settings(batch_size=specimen.batch_size)).total
    ratio = measured / predicted
    figures = {"peak_bytes": measured, "predicted_bytes": predicted, "cache_bytes": cached}
    value = f"peak {_mebibytes(measured)}, predicted {_mebibytes(predicted)}: ratio {ratio:.2f}"
    if GOOD_RATIO[0] <= ratio <= GOOD_RATIO[1]:
        return Outcome(OK, value, "`mlx_dpo plan` is right here.", figures)
    more = "more" if ratio > 1 else "less"
    return Outcome(LOOK, value, f"A run takes {more} than `mlx_dpo plan` says.", figures)


def step(bench: Bench) -> Outcome:
    """Seconds of a step; the first compiles kernels and fills the buffer cache."""
    trainer = bench.trainer(bench.loaded())
    first, *others = [seconds_of(trainer.train_step) for _ in range(1 + TIMES)]
    seconds, stages = min(others), trainer.stages
    figures = {
        "seconds": seconds,
        "first_seconds": first,
        "pairs": stages.num_pairs,
        "computed_tokens": stages.work.computed_tokens,
        "last_phases_seconds": stages.phases.seconds,
    }
    rate = stages.work.computed_tokens / seconds
    value = (
        f"{seconds:.3g} s for {stages.num_pairs} pairs ({rate:.0f} tokens/s), first {first:.3g} s"
    )
    return Outcome(OK, value, "Only a time, to be compared with a machine of its kind.", figures)


def forward(bench: Bench) -> Outcome:
    """Seconds of a forward and backward pass over two half batches against one over all."""
    specimen = bench.specimen
    path = FastPath(specimen.max_length, specimen.pad_id, share_prompts=False)
    batch = [bench.batch[0]] * 4  # equal pairs: two halves are padded no less than the whole
    tokens = path.work(batch).computed_tokens
    one = partial(_pass, bench.model, path, [batch])
    two = partial(_pass, bench.model, path, [batch[:2], batch[2:]])
    measured = [(seconds_of(one), seconds_of(two)) for _ in range(1 + TIMES)][1:]
    whole, halves = (min(times) for times in zip(*measured, strict=True))
    price = forward_price(tokens, whole, halves)
    figures = {
        "price_tokens": price if math.isfinite(price) else None,
        "tokens": tokens,
        "whole_seconds": whole,
        "halves_seconds": halves,
    }
    shown = f"{price:.0f} tokens" if math.isfinite(price) else "too noisy to tell"
    value = f"{shown} ({tokens} in one: {whole:.3g} s, in two: {halves:.3g} s)"
    return Outcome(OK, value, "Splitting a batch is worth it above so much padding.", figures)


def forward_price(tokens: int, whole: float, halves: float) -> float:
    """Price of one more forward and backward pass, in tokens.

    A pass takes a + b · tokens seconds, so two over halves take a more than one over all. The price
    is a / b: 0 where two take no more, infinite where they take twice the time.

    Args:
        tokens: Of the whole batch.
        whole: Seconds of one pass.
        halves: Seconds of two passes, each over half of the tokens.
    """
    constant, growing = max(0.0, halves - whole), 2 * whole - halves
    return tokens * constant / growing if growing > 0 else math.inf


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of some work and of all that MLX still computes after it."""
    mx.synchronize()
    begin = time.perf_counter()
    work()
    mx.synchronize()
    return time.perf_counter() - begin


def _pass(model: nn.Module, path: ScoringPath, parts: Sequence[Batch]) -> None:
    def objective() -> mx.array:
        return mx.stack([path(model, part).sum() for part in parts]).sum()

    mx.eval(nn.value_and_grad(model, objective)())


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
