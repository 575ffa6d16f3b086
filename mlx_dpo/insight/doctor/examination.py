"""Every check on every model, in order; and the results as data."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import mlx.core as mx

from mlx_dpo.errors import one_line
from mlx_dpo.insight.doctor import correctness, cost
from mlx_dpo.insight.doctor.bench import (
    FAIL,
    OK,
    VERDICTS,
    Bench,
    Outcome,
    Specimen,
    embedded_model,
    model_of_folder,
    packed_llama,
    random_llama,
    without_paths,
)
from mlx_dpo.insight.doctor.forward import forward_pass
from mlx_dpo.insight.doctor.hardware import backend
from mlx_dpo.models.limits import limited_memory

DEVICE = "device"
CHECKS: dict[str, Callable[[Bench], Outcome]] = {
    "path": correctness.path,
    "plain against fast": correctness.agreement,
    "step 0": correctness.start,
    "gradients": correctness.gradients,
    "resume": correctness.resume,
    "memory": cost.memory,
    "step": cost.step,
    "one more forward": cost.forward,
}

CHECKS_OF_ADAPTERS: dict[str, Callable[[Bench], Outcome]] = {
    "path": correctness.path,
    "plain against fast": correctness.agreement,
    "step 0": correctness.start,
    "adapter off": correctness.adapter_off,
    "adapter trains": correctness.adapter_trains,
    "resume": correctness.resume,
    "step": cost.step,
}

Around = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class CheckResult:
    """The result of a check of one model, or of the device where `model` is `DEVICE`."""

    model: str
    check: str
    outcome: Outcome
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        head = {"model": self.model, "check": self.check, "seconds": self.seconds}
        return head | asdict(self.outcome)


def standard_specimens() -> tuple[list[Specimen], list[CheckResult]]:
    """The random models, one smaller on a CPU so that a minute is enough, and the embedded one.

    Returns:
        The models, and a failed check for an embedded one that can't be loaded.
    """
    small = {"kv_heads": 1, "batch_size": 2} if backend() == "CPU" else {}
    models = [random_llama(**small), packed_llama()]
    begin = time.perf_counter()
    try:
        embedded = embedded_model()
    except Exception as error:  # whatever it is, the random models still have something to say
        return models, [
            CheckResult("embedded", "load", _failed(error), time.perf_counter() - begin)
        ]
    return [*models, *([embedded] if embedded else [])], []


def own_specimens(name: str) -> tuple[list[Specimen], list[CheckResult]]:
    """A model of the user's, and whether its forward pass is its own.

    Raises:
        UsageError: If it is not there or can't be loaded.
    """
    specimen = model_of_folder(name)
    begin = time.perf_counter()
    outcome = _outcome(partial(forward_pass, name))
    return [specimen], [
        CheckResult(specimen.name, "forward pass", outcome, time.perf_counter() - begin)
    ]


def examine(
    specimens: Sequence[Specimen], around: Around = lambda _: nullcontext()
) -> list[CheckResult]:
    """Run every check on every model.

    Nothing stays behind: the checkpoint of `correctness.resume` lies in a temporary folder.

    Args:
        specimens: The models.
        around: Entered around each check, with its name.

    Returns:
        The results; a check that raised has failed.
    """
    results = []
    with limited_memory():
        for model, name, check in _all_checks(specimens):
            begin = time.perf_counter()
            with around(f"{model}: {name}"):
                outcome = _outcome(check)
            results.append(CheckResult(model, name, outcome, time.perf_counter() - begin))
    return results


def worst(results: Sequence[CheckResult]) -> str:
    """The worst verdict."""
    return max((result.outcome.verdict for result in results), key=VERDICTS.index, default=OK)


def _all_checks(
    specimens: Sequence[Specimen],
) -> Iterator[tuple[str, str, Callable[[], Outcome]]]:
    yield DEVICE, "float32 products", correctness.float32_products
    yield DEVICE, "packed products", correctness.packed_products
    for specimen in specimens:
        bench = Bench(specimen)
        checks = CHECKS if specimen.adapt is None else CHECKS_OF_ADAPTERS
        for name, check in checks.items():
            yield specimen.name, name, partial(check, bench)
            gc.collect()
            mx.clear_cache()


def _outcome(check: Callable[[], Outcome]) -> Outcome:
    try:
        return check()
    except Exception as error:  # whatever it is, the other checks still have something to say
        return _failed(error)


def _failed(error: Exception) -> Outcome:
    text = without_paths(f"{type(error).__name__}: {one_line(error)}")
    return Outcome(FAIL, text, "The check could not be finished.", {"error": text})
