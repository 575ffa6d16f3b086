"""The settings that fit a budget and cost least time, tried in an order that is always the same.

What was asked for comes first. Then, each on top of what costs less than it: the reference cached,
smaller micro-batches that add up to the same step, layer checkpointing, bfloat16, and last another
optimizer. What was given by hand stays. Clipping is never given up here, because that changes what
is trained without a word; it is offered where nothing else is left.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import mlx.core as mx

from mlx_dpo.memory.predict import Settings

Measure = Callable[[Settings], int]


@dataclass(frozen=True)
class Solution:
    """What fits.

    Attributes:
        settings: The settings.
        total: Their predicted peak in bytes.
        tried: Settings that come before them and don't fit, with their peak.
    """

    settings: Settings
    total: int
    tried: list[tuple[Settings, int]]


@dataclass(frozen=True)
class NoSolution:
    """Nothing fits with what was given.

    Attributes:
        smallest: The settings that come nearest.
        total: Their predicted peak in bytes.
        change: Setting and value that would make them fit, beyond what may be chosen for anybody;
            None where there is none.
    """

    smallest: Settings
    total: int
    change: dict[str, Any] | None


def solve(
    asked: Settings,
    budget: int,
    *,
    predict: Measure,
    least: Measure,
    fixed: Collection[str] = (),
) -> Solution | NoSolution:
    """Find the cheapest settings whose predicted peak is within a budget.

    Args:
        asked: The settings to begin with.
        budget: In bytes.
        predict: The peak of some settings.
        least: What they need at any rate; cheap, and asked first.
        fixed: Names of settings that were given by hand.
    """
    tried: list[tuple[Settings, int]] = []
    order = list(candidates(asked, fixed))
    for number, settings in enumerate(order):
        total = least(settings)
        if total <= budget:
            total = predict(settings)
        if total <= budget:
            return Solution(settings, total, tried)
        tried.append((settings, total))
        # Before all are tried: does anything fit?
        if not number and min(map(predict, _nearest(order))) > budget:
            break
    smallest = min(_nearest(order), key=predict)
    for change in _changes(smallest, fixed):
        if predict(replace(smallest, **change)) <= budget:
            return NoSolution(smallest, predict(smallest), change)
    return NoSolution(smallest, predict(smallest), None)


def candidates(asked: Settings, fixed: Collection[str] = ()) -> Iterator[Settings]:
    """Settings in the order they are tried; later ones cost more time or change more."""
    pairs = asked.batch_size * asked.grad_accumulation
    sizes = [asked.batch_size]
    while sizes[-1] > 1 and not {"batch_size", "grad_accumulation"} & set(fixed):
        sizes.append(next(n for n in range(sizes[-1] // 2, 0, -1) if pairs % n == 0))
    choices: dict[str, list[Any]] = {
        "optimizer": [asked.optimizer, "adafactor"],
        "dtype": [asked.dtype, "bfloat16"],
        "checkpoint_layers": [asked.checkpoint_layers, True],
        "batch_size": sizes,
        "reference": [asked.reference, "cached"],
    }
    for name in fixed:
        if name in choices:
            choices[name] = choices[name][:1]
    # The last name turns fastest; a choice that is the one before it is no choice.
    for values in product(*(dict.fromkeys(values) for values in choices.values())):
        settings = replace(asked, **dict(zip(choices, values, strict=True)))
        yield replace(settings, grad_accumulation=pairs // settings.batch_size)


def changed(asked: Settings, chosen: Settings) -> dict[str, Any]:
    """The settings that differ, with the values chosen."""
    before = asdict(asked)
    return {name: value for name, value in asdict(chosen).items() if value != before[name]}


def _nearest(order: list[Settings]) -> list[Settings]:
    """Those with every lever pulled, batches whole or not: one of them needs least of all."""
    last = replace(order[-1], batch_size=1, grad_accumulation=1)
    return [one for one in order if replace(one, batch_size=1, grad_accumulation=1) == last]


def _changes(smallest: Settings, fixed: Collection[str]) -> Iterator[dict[str, Any]]:
    """What only the user may decide, the smallest change first."""
    freed = {"reference": "cached", "checkpoint_layers": True, "optimizer": "adafactor"}
    for name, value in freed.items():
        if name in fixed and getattr(smallest, name) != value:
            yield {name: value}
    if smallest.grad_clip:
        yield {"grad_clip": 0.0}
        # Only a step that is one micro-batch is updated as its gradient comes.
        yield {"grad_clip": 0.0, "batch_size": 1, "grad_accumulation": 1}


# --- The machines a plan is held against, and how much of their memory MLX
# should use.
#
# Apple silicon shares one memory; macOS recommends a part of it for the GPU, about two thirds on
# machines of up to 32 GB: 5.3 of 8 and 10.7 of 16 GB by public logs, not measured here.


GIB = 2**30
# Of what is recommended for the GPU: room for MLX's buffer cache and for predictions that are off.
SHARE = 0.75
_RECOMMENDED = {8: 5.3, 16: 10.7, 24: 16.0, 32: 21.3}  # GiB; the last two by the same share


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        name: As it is shown.
        recommended: Bytes the system recommends that a GPU program keeps within.
    """

    name: str
    recommended: int

    def verdict(self, peak: int) -> str:
        """``fits``, ``tight`` (more than `SHARE` of what is recommended) or ``does not fit``."""
        if peak <= SHARE * self.recommended:
            return "fits"
        return "tight" if peak <= self.recommended else "does not fit"


def machines() -> list[Machine]:
    """The standing machines, and this one where it says what it recommends."""
    standing = [Machine(f"{size} GB", round(gib * GIB)) for size, gib in _RECOMMENDED.items()]
    recommended = recommended_here()
    return standing + ([Machine("this one", recommended)] if recommended else [])


def recommended_here() -> int | None:
    """Bytes this device recommends to keep within; None where it does not say, as on a CPU."""
    info: dict[str, Any] = mx.device_info()
    found = info.get("max_recommended_working_set_size")
    return int(found) if found else None
