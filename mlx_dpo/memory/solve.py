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
