"""The settings that fit a budget and cost least time, tried in an order that is always the same.

The settings asked for come first. Then, each on top of what costs less than it: the reference
cached, smaller micro-batches that add up to the same step, layer checkpointing, bfloat16, and last
another optimizer. Of adapters the last two are not tried: what they train is small and float32, and
the base stays as it is. Settings given by hand stay. Clipping is never given up here, because that
changes what is trained; it is offered where nothing else is left.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from typing import Any

from mlx_dpo.memory.settings import Settings
from mlx_dpo.models.device import recommended_here

GIB = 2**30
# Of what is recommended for the GPU: room for MLX's buffer cache and for predictions that are off.
SHARE = 0.75
# GiB of Apple silicon's one memory that macOS recommends for the GPU, about two thirds: by public
# logs for 8 and 16 GB, the last two by the same share; not measured here.
_RECOMMENDED = {8: 5.3, 16: 10.7, 24: 16.0, 32: 21.3}

Bounds = Callable[[Settings], Iterable[int]]


@dataclass(frozen=True)
class NoSolution:
    """Nothing fits with the settings given.

    Attributes:
        smallest: The settings that come nearest.
        total: Their predicted peak in bytes.
        change: Settings and values that would make them fit, beyond what may be chosen without
            asking; None where there are none.
    """

    smallest: Settings
    total: int
    change: dict[str, Any] | None


def solve(
    asked: Settings, budget: int, bounds: Bounds, fixed: Collection[str] = ()
) -> Settings | NoSolution:
    """Find the cheapest settings whose predicted peak is within a budget.

    Args:
        asked: The settings to begin with.
        budget: In bytes.
        bounds: Lower bounds of the peak under some settings, cheap ones first; the largest is the
            peak.
        fixed: Names of settings that were given by hand.
    """

    def fits(settings: Settings) -> bool:
        return all(bound <= budget for bound in bounds(settings))

    order = list(candidates(asked, fixed))
    for _, alike in groupby(order, key=lambda s: (s.optimizer, s.dtype)):
        group = list(alike)
        if fits(group[0]):
            return group[0]
        # Before all of them are tried: does any fit?
        if any(map(fits, _smallest(group))):
            return next(filter(fits, group))
    totals = {settings: max(bounds(settings)) for settings in _smallest(order)}
    smallest = min(totals, key=totals.__getitem__)
    changes = (c for c in _changes(smallest, fixed) if fits(replace(smallest, **c)))
    return NoSolution(smallest, totals[smallest], next(changes, None))


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
    kept = {"optimizer", "dtype"} if asked.method == "lora" else set[str]()
    if asked.reference == "adapters-off":  # holds no second model either
        kept.add("reference")
    for name in kept | set(fixed):
        if name in choices:
            choices[name] = choices[name][:1]
    # The last name turns fastest; a choice equal to the one before it is none.
    for values in product(*(dict.fromkeys(values) for values in choices.values())):
        settings = replace(asked, **dict(zip(choices, values, strict=True)))
        yield replace(settings, grad_accumulation=pairs // settings.batch_size)


def changed(asked: Settings, chosen: Settings) -> dict[str, Any]:
    """The settings that differ, with the values chosen."""
    before = asdict(asked)
    return {name: value for name, value in asdict(chosen).items() if value != before[name]}


def _smallest(group: list[Settings]) -> list[Settings]:
    """The last of a group, with batches as asked for or smallest: one of them needs least of all.

    Layer checkpointing and smaller batches take no more, but for a kilobyte; a second gradient,
    which comes with the first batch that is split, may.
    """
    last = group[-1]

    def but_for_batches(settings: Settings) -> Settings:
        return replace(settings, batch_size=1, grad_accumulation=1)

    alike = [s for s in group if but_for_batches(s) == but_for_batches(last)]
    return list(dict.fromkeys((alike[0], alike[-1])))


def _changes(smallest: Settings, fixed: Collection[str]) -> Iterator[dict[str, Any]]:
    """What only the user may decide, the smallest change first."""
    freed: dict[str, Any] = {"reference": "cached", "checkpoint_layers": True}
    if smallest.method != "lora":
        freed["optimizer"] = "adafactor"
    for name, value in freed.items():
        if name in fixed and getattr(smallest, name) != value:
            yield {name: value}
    if smallest.grad_clip:
        yield {"grad_clip": 0.0}
        # Only a step that is one micro-batch is updated as its gradient comes.
        yield {"grad_clip": 0.0, "batch_size": 1, "grad_accumulation": 1}


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
    """The machines that are always listed, and this one if it says what it recommends."""
    standing = [Machine(f"{size} GB", round(gib * GIB)) for size, gib in _RECOMMENDED.items()]
    recommended = recommended_here()
    return standing + ([Machine("this one", recommended)] if recommended else [])
