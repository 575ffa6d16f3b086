"""Where an axis has its ticks, and how they are written."""

import math
from collections.abc import Sequence

_FACTORS = (1, 2, 5, 10, 20)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`.

    The step is 1, 2 or 5 times a power of ten, and the one that makes at most `count` intervals.

    Args:
        low: Least value to show, finite.
        high: Greatest.
        count: Most intervals.

    Raises:
        ValueError: If a bound is not finite or they are the wrong way round.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"no axis from {low} to {high}")
    if high - low <= 1e-9 * max(abs(low), abs(high)) or high - low < 1e-300:
        room = abs(low) / 2 or 1.0  # one value only: put it in the middle of some room
        low, high = low - room, high + room
    power = math.floor(math.log10((high - low) / count))
    for factor in _FACTORS:
        step = float(f"{factor}e{power}")
        # What rounding alone adds must not cost an interval.
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= count:
            break
    # By way of text each tick is the float nearest to its decimal number: 0.3, not 3 * 0.1.
    return [float(f"{number * factor}e{power}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive bounds, both included.

    Raises:
        ValueError: If a bound is not positive and finite or they are the wrong way round.
    """
    if not (0 < low <= high and math.isfinite(high)):
        raise ValueError(f"no logarithmic axis from {low} to {high}")
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in _FACTORS[:3]]
    inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return inside or [low]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Ticks as text with the digits they need: `0.00 0.25 0.50`, `2e-5`, a real minus sign."""
    largest = max(map(abs, ticks), default=0.0)
    if largest and not 1e-3 <= largest < 1e6:
        return [_scientific(tick) for tick in ticks]
    digits = max((_decimals(tick) for tick in ticks), default=0)
    return [_signed(f"{tick:.{digits}f}") for tick in ticks]


def _decimals(value: float) -> int:
    _, _, decimals = f"{value:.10f}".rstrip("0").partition(".")
    return len(decimals)


def _scientific(value: float) -> str:
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    if float(mantissa) == 0:
        return "0"
    return _signed(f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}")


def _signed(text: str) -> str:
    return text.replace("-", "\u2212") if text.strip("-0.") else text.lstrip("-")
