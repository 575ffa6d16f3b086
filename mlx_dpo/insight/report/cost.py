"""What a run cost: its time by phase, its memory, and what padding added and sharing saved."""

from dataclasses import dataclass
from typing import Any

PHASES = {
    "data_seconds": "data",
    "reference_seconds": "reference",
    "forward_backward_seconds": "forward and backward",
    "update_seconds": "update",
}


@dataclass(frozen=True)
class Cost:
    """Sums over the steps of a run.

    Attributes:
        steps: Steps that were timed.
        seconds: All of them.
        pairs: Pairs trained on.
        phases: Name and seconds of each; what is in none of them is the last, "the rest".
        peak: GiB, the most that MLX's arrays took.
        peak_step: The step, counted from 1, that first took it.
        padding: Tokens computed for each real one; None in runs that did not count.
        unshared: Tokens it would have been with each prompt read for each response, for each one
            computed.
    """

    steps: int
    seconds: float
    pairs: int
    phases: list[tuple[str, float]]
    peak: float
    peak_step: int
    padding: float | None
    unshared: float | None


def cost_of(timings: list[dict[str, Any]]) -> Cost | None:
    """The cost of a run by its timings, with `seconds`, `pairs` and `peak_bytes` in each row.

    None where no step was timed.
    """
    if not timings:
        return None

    def total(key: str) -> float:
        return float(sum(row.get(key, 0) for row in timings))

    seconds = total("seconds")
    phases = [(name, total(key)) for key, name in PHASES.items() if key in timings[-1]]
    phases.append(("the rest", max(0.0, seconds - sum(spent for _, spent in phases))))
    largest = max(timings, key=lambda row: row["peak_bytes"])  # the first of equals
    real, computed = total("real_tokens"), total("computed_tokens")
    return Cost(
        steps=len(timings),
        seconds=seconds,
        pairs=int(total("pairs")),
        phases=phases,
        peak=largest["peak_bytes"] / 2**30,
        peak_step=largest["step"] + 1,
        padding=computed / real if real else None,
        unshared=total("unshared_tokens") / computed if computed else None,
    )
