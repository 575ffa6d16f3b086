"""Whether the numbers are right: products, paths, the first loss, repetition, resuming."""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.insight.doctor.bench import FAIL, LOOK, OK, Bench, Outcome, without_paths
from mlx_dpo.insight.doctor.hardware import TF32, backend, product_error, tf32_switch
from mlx_dpo.models.adapters import base_parameters, parts_of, small_updates, without_adapter
from mlx_dpo.models.packed import dense, multiply_dense
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.runs.checkpoint import Checkpoints, restore
from mlx_dpo.training.gradient import Gradient
from mlx_dpo.training.paths import PlainPath
from mlx_dpo.training.reference import adapter_off as silent_reference
from mlx_dpo.training.reference import reference_path
from mlx_dpo.training.self_check import FLOAT32
from mlx_dpo.training.trainer import DPOTrainer

GRADIENTS = 20  # of one batch, compared bit by bit
_PAIRS = 2  # of that batch and of the first loss: bfloat16 is slow on a CPU
STEPS = 4  # of a run that is stopped half-way
CUT_OPERANDS = 1e-5  # error of a product above which its operands are no float32
PACKINGS = {"affine, 4 bits": ("affine", 4, 64), "mxfp4": ("mxfp4", 4, 32)}
PACKED_ERROR = 1e-2  # of a product with packed weights; bfloat16 has 8 bits
_ADAPTER_STEPS, _ADAPTER_RATE = 6, 1e-3


def float32_products() -> Outcome:
    """Whether products of float32 are computed in float32, or with operands cut to 10 bits."""
    error, switch = product_error(), tf32_switch(os.environ.get(TF32))
    figures = {"error": error, "tf32": switch}
    value = f"off by {error:.1e} of the largest entry"
    if error <= CUT_OPERANDS:
        return Outcome(OK, value, "float32 is computed in full.", figures)
    if switch["value"] == "0":
        return Outcome(FAIL, value, f"Operands are cut although {TF32} is 0.", figures)
    return Outcome(LOOK, value, f"Operands are cut to 10 bits; {TF32}=0 ends that.", figures)


def packed_products() -> Outcome:
    """Products with packed weights, and their gradients, against those with the weights unpacked.

    In bfloat16, as a run makes them: on a CPU that is with weights it unpacks itself.
    """
    errors = {}
    for name, (mode, bits, group) in PACKINGS.items():
        mx.random.seed(0)
        layer = nn.Linear(512, 256, bias=False)
        layer.set_dtype(mx.bfloat16)
        packed = nn.Sequential(layer)
        nn.quantize(packed, group_size=group, bits=bits, mode=mode)
        matrix = np.array(dense(packed.layers[0])).astype(np.float64)
        multiply_dense(packed)
        x, y = (mx.random.normal((24, size), dtype=mx.bfloat16) for size in (512, 256))
        (found,), (gradient,) = mx.vjp(packed, [x], [y])
        rows, columns = (np.array(a.astype(mx.float32)).astype(np.float64) for a in (x, y))
        errors[name] = max(_error(found, rows @ matrix.T), _error(gradient, columns @ matrix))
    value = ", ".join(f"{name} off by {error:.1e}" for name, error in errors.items())
    figures = {"errors": errors}
    if max(errors.values()) <= PACKED_ERROR:
        return Outcome(OK, value, "Quantised weights multiply as what they stand for.", figures)
    meaning = "Products with quantised weights are wrong: do not train adapters on them here."
    return Outcome(FAIL, value, meaning, figures)


def path(bench: Bench) -> Outcome:
    """Which path a run takes, and why."""
    choice = bench.choice
    refused = {name: without_paths(reason) for name, reason in choice.refused}
    figures = {
        "path": choice.path.name,
        "pairs": choice.num_pairs,
        "largest_difference": choice.largest_difference,
        "refused": refused,
    }
    value = choice.path.name
    if value != PlainPath.name:
        value += f", log-probs to {choice.largest_difference:.1e} nats on {choice.num_pairs} pairs"
    if not refused:
        return Outcome(OK, value, "A run takes the fastest path, which proved itself.", figures)
    name, why = next(iter(refused.items()))
    more = f"; {len(refused) - 1} more" if len(refused) > 1 else ""
    value = f"{value} ({name}: {why}{more})"
    return Outcome(LOOK, value, "A run is right, but slower than it could be.", figures)


def agreement(bench: Bench) -> Outcome:
    """Log-probs and gradients of the fast path against the definition."""
    bench.reference  # noqa: B018  # computed now, by a model as it is
    ways = (bench.plain, bench.fast)
    with small_updates(bench.model):
        plain, fast = (np.array(way(bench.model, bench.batch)) for way in ways)
        expected, gradient = (bench.gradient(way, bench.batch) for way in ways)
    difference = np.abs(fast - plain)
    off = {name: _difference(gradient[name], value) for name, value in expected.items()}
    tensor = max(off, key=lambda name: off[name])
    figures = {
        "path": bench.fast.name,
        "logprob_difference": float(difference.max()),
        "gradient_difference": off[tensor],
        "gradient_tensor": tensor,
    }
    value = f"log-probs off by {difference.max():.1e} nats, gradients by {off[tensor]:.1e}"
    agrees = bool((difference <= FLOAT32.absolute + FLOAT32.relative * np.abs(plain)).all())
    if agrees and off[tensor] <= FLOAT32.gradient:
        return Outcome(OK, value, f"{bench.fast.name} and plain differ by rounding.", figures)
    if bench.choice.path.name == PlainPath.name:
        return Outcome(LOOK, value, "The fast path is refused, and a run takes longer.", figures)
    return Outcome(FAIL, value, "The path that a run takes gives other numbers.", figures)


def start(bench: Bench) -> Outcome:
    """The loss before the first update, with each kind of reference."""
    pairs = bench.specimen.examples[::2][:_PAIRS]  # no batch of the reference
    half = bench.loaded("bfloat16")
    trainers = {
        # Scored in other batches than those of a step, as a float32 run scores it.
        "cached": bench.trainer(bench.model, examples=pairs, reference=bench.reference),
        "copy": bench.trainer(bench.model, examples=pairs, copy=bench.loaded()),
        "bfloat16": bench.trainer(half, examples=pairs, reference=bench.score(half, pairs)),
    }
    adapter = parts_of(bench.model).values()
    if adapter and not any(part.b.any().item() for part in adapter):  # it changes nothing yet
        silent = silent_reference(bench.model, reference_path(bench.choice.path, float32=True))
        trainers["adapter off"] = bench.trainer(bench.model, examples=pairs, reference=silent)
    starts = {name: trainer.check_start() for name, trainer in trainers.items()}
    value = ", ".join(f"{name} {found['loss']:.9f}" for name, found in starts.items())
    refused = [n for n, s in starts.items() if not s["largest_reward"] <= s["allowed_reward"]]
    off = [n for n, s in starts.items() if abs(s["loss"] - math.log(2)) > s["allowed_reward"]]
    if refused:
        meaning = f"A run is refused before it begins: {', '.join(refused)} is not at log 2."
        return Outcome(FAIL, value, meaning, starts)
    if off:
        meaning = f"{', '.join(off)}: the policy under a gradient is not scored as its reference."
        return Outcome(LOOK, value, meaning, starts)
    return Outcome(OK, value, "A run starts at log 2 (0.693147182 in float32).", starts)


def adapter_off(bench: Bench) -> Outcome:
    """Log-probs with the adapter off against those of the model it was put on."""
    base = bench.specimen.make("float32")
    expected = np.array(bench.plain(base, bench.batch))
    with small_updates(bench.model):
        on, off = (
            np.array(bench.plain(model, bench.batch))
            for model in (bench.model, without_adapter(bench.model))
        )
    same_base = fingerprint(base_parameters(bench.model)) == fingerprint(base.parameters())
    difference, moved = (float(np.abs(found - expected).max()) for found in (off, on))
    figures = {"difference": difference, "moved": moved, "same_base": same_base}
    value = f"off by {difference:.1e} nats" if difference else "equal to the bit"
    value += f"; with the adapter on, off by {moved:.1e} nats"
    if not (same_base and moved > 0 and difference <= FLOAT32.absolute):
        return Outcome(FAIL, value, "With the adapter off it is another model.", figures)
    if difference > 0:
        return Outcome(LOOK, value, "The reference rounds otherwise than its model.", figures)
    return Outcome(OK, value, "The reference of an adapter is its model, to the bit.", figures)


def adapter_trains(bench: Bench) -> Outcome:
    """Whether steps on one batch lower its loss, and leave the base as it was."""
    policy = bench.loaded()
    before = fingerprint(base_parameters(policy))
    trainer = bench.trainer(policy, examples=bench.batch, learning_rate=_ADAPTER_RATE)
    losses = [trainer.train_step()["loss"] for _ in range(_ADAPTER_STEPS)]
    same_base = fingerprint(base_parameters(policy)) == before
    figures = {"losses": losses, "same_base": same_base}
    value = f"loss {losses[0]:.4f}, after {len(losses) - 1} steps {losses[-1]:.4f}; base "
    value += "equal to the byte" if same_base else "not equal"
    if not same_base:
        return Outcome(FAIL, value, "Training an adapter changes what it must not.", figures)
    if not losses[-1] < losses[0]:
        return Outcome(FAIL, value, "The adapter does not learn.", figures)
    return Outcome(OK, value, "Only the adapter trains, and it learns.", figures)


def gradients(bench: Bench) -> Outcome:
    """How many of some gradients of one batch differ in any bit."""
    number, tensors = distinct(partial(bench.gradient, bench.fast, bench.batch[:_PAIRS]), GRADIENTS)
    figures = {"gradients": GRADIENTS, "distinct": number, "tensors": tensors}
    value = f"{number} distinct of {GRADIENTS}"
    if number == 1:
        return Outcome(OK, value, "One batch gives the same bits each time.", figures)
    value += f", in {tensors[0]}" + (f" and {len(tensors) - 1} more" if tensors[1:] else "")
    return Outcome(_without_equality(), value, "Two runs are not equal to the byte.", figures)


def resume(bench: Bench) -> Outcome:
    """A run straight through, and one that is stopped half-way and restored."""
    with TemporaryDirectory() as folder:
        straight = bench.trainer(bench.loaded())
        for _ in range(STEPS // 2):
            straight.train_step()
        saved, state = Checkpoints(Path(folder)).save(straight, {}), _state(straight)
        resumed = bench.trainer(bench.loaded())
        restore(saved, resumed)
    same_state = _state(resumed) == state
    for trainer in (straight, resumed):
        for _ in range(STEPS - STEPS // 2):
            trainer.train_step()
    same_end = _state(straight) == _state(resumed)
    figures = {"steps": STEPS, "same_state": same_state, "same_end": same_end}
    value = f"restored state {_equal(same_state)}, after {STEPS} steps {_equal(same_end)}"
    if not same_state:
        return Outcome(FAIL, value, "A checkpoint does not come back as it was.", figures)
    if not same_end:
        meaning = "A resumed run begins at the exact state, and then rounds otherwise."
        return Outcome(_without_equality(), value, meaning, figures)
    return Outcome(OK, value, "A resumed run is the run that never stopped.", figures)


def distinct(gradient: Callable[[], Gradient], times: int) -> tuple[int, list[str]]:
    """Compute a gradient some times.

    Returns:
        The number of results that differ in any bit, and the names of the tensors that vary.
    """
    digests: dict[str, set[str]] = {}
    whole = set()
    for _ in range(times):
        now = {name: fingerprint({name: array}) for name, array in gradient().items()}
        for name, value in now.items():
            digests.setdefault(name, set()).add(value)
        whole.add(tuple(now.values()))
    return len(whole), [name for name, values in digests.items() if len(values) > 1]


def _without_equality() -> str:
    """The verdict where bits differ from run to run, which only the CPU promises they don't."""
    return FAIL if backend() == "CPU" else LOOK


def _difference(gradient: mx.array, expected: mx.array) -> float:
    """Largest difference, as a share of the largest entry that is expected."""
    return float(mx.abs(gradient - expected).max() / mx.maximum(mx.abs(expected).max(), 1e-12))


def _error(found: mx.array, expected: npt.NDArray[np.float64]) -> float:
    """Largest error, as a share of the largest entry."""
    error = np.abs(np.array(found.astype(mx.float32)) - expected).max()
    return float(error / np.abs(expected).max())


def _state(trainer: DPOTrainer) -> tuple[str, str]:
    return fingerprint(trainer.model.trainable_parameters()), fingerprint(trainer.optimizer.state)


def _equal(same: bool) -> str:
    return "equal to the byte" if same else "not equal"
