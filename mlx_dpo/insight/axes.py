"""Axes of a chart: scales, round ticks and their labels, and the SVG elements they are made of."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

Interval = tuple[float, float]

WIDTH, HEIGHT = 350, 230
TOP, BOTTOM, RIGHT = 48, 40, 14  # margins around the plotting area; the left one is measured
CHARACTER = 6.6  # mean width of a character of the 12-pixel text, a little too much
_FACTORS = (1, 2, 5, 10, 20)  # of a power of ten: steps between ticks


@dataclass(frozen=True, slots=True)
class Scale:
    """From values between `low` and `high` to pixels between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Axes:
    """A plotting area: its two scales, and the SVG elements of grid and labels."""

    x: Scale
    y: Scale
    marks: list[str]


def axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    *,
    x_label: str,
    x_range: Interval,
    is_log: bool = False,
) -> Axes:
    """Grid lines with the values beside them; the label of x below.

    The area reaches over `x_range` and from the first of `y_ticks`, at least two, to the last. If
    `is_log`, x is logarithmic.
    """
    y_names = tick_labels(y_ticks)
    left, right = round(12 + CHARACTER * max(map(len, y_names))), WIDTH - RIGHT
    bottom = HEIGHT - BOTTOM
    x = Scale(*x_range, left, right, is_log)
    y = Scale(y_ticks[0], y_ticks[-1], bottom, TOP)
    marks = []
    for tick, name in zip(y_ticks, y_names, strict=True):
        marks.append(line(left, y(tick), right, y(tick), "grid"))
        marks.append(text(left - 6, y(tick) + 4, name, anchor="end"))
    # Evenly spaced ticks share their digits; 0.01 and 1 don't.
    x_names = [tick_labels([t])[0] for t in x_ticks] if is_log else tick_labels(x_ticks)
    for tick, name in zip(x_ticks, x_names, strict=True):
        marks.append(line(x(tick), bottom, x(tick), bottom + 4, "grid"))
        marks.append(text(x(tick), bottom + 16, name, anchor="middle"))
    marks.append(text((left + right) / 2, HEIGHT - 8, x_label, anchor="middle"))
    return Axes(x, y, marks)


def text(x: float, y: float, content: str, css: str = "", *, anchor: str = "start") -> str:
    """A line of text; what XML does not allow is replaced."""
    style = f' class="{css}"' if css else ""
    side = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}{side}>{escape(printable(content))}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" class="{css}"/>'


def rectangle(x: float, y: float, width: float, height: float, css: str) -> str:
    """A filled rectangle."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{css}"/>'
    )


def dot(x: float, y: float, css: str) -> str:
    """A filled circle."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{css}"/>'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at or below `low` to at or above `high`.

    The step is 1, 2 or 5 times a power of ten: the one that makes at most `count` intervals.

    Raises:
        ValueError: If a bound is not finite or they are the wrong way round.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"no axis from {low} to {high}")
    if high - low <= 1e-9 * max(abs(low), abs(high)) or high - low < 1e-300:
        room = abs(low) / 2 or 1.0  # a single value: put it in the middle
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
    return len(f"{value:.10f}".rstrip("0").partition(".")[2])


def _scientific(value: float) -> str:
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    if float(mantissa) == 0:
        return "0"
    return _signed(f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}")


def _signed(number: str) -> str:
    return number.replace("-", "\u2212") if number.strip("-0.") else number.lstrip("-")


def printable(content: str) -> str:
    """What XML does not allow is replaced."""
    return "".join(c if c.isprintable() else "\ufffd" for c in content)
