"""Line charts and bar charts as SVG text, and what they are drawn with: axes, ticks, a style sheet.

Sizes are pixels of a drawing 350 wide, which a phone shows unscaled, so that no letter of it is
under 12 pixels; wider places scale it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

Point = tuple[float, float]
Interval = tuple[float, float]

WIDTH, HEIGHT = 350, 230
TOP, BOTTOM, RIGHT = 48, 40, 14  # margins around the plotting area; the left one is measured
MOST_COLOURS = 5  # classes s1 to s5 of lines and f1 to f5 of areas, by number of the series
_CHARACTER = 6.6  # mean width of a character of the 12-pixel text, a little too much
_FACTORS = (1, 2, 5, 10, 20)  # of a power of ten: steps between ticks

# Okabe and Ito's colours, told apart with any kind of colour vision; lighter ones on dark ground.
# A second difference, dashes or position, always stands beside the colour.
STYLE = """
.plot {
  --ink: #1c1e21; --muted: #5b6169; --grid: #e3e5e8;
  --c1: #0072b2; --c2: #d55e00; --c3: #00805e; --c4: #b0558a; --c5: #1c1e21;
  display: block; width: 100%; height: auto;
  font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
@media (prefers-color-scheme: dark) {
  .plot {
    --ink: #e8eaed; --muted: #a2a8b0; --grid: #34383e;
    --c1: #56b4e9; --c2: #f0a04b; --c3: #2fc79b; --c4: #e79ac6; --c5: #e8eaed;
  }
}
.plot.swatch { display: inline-block; width: 32px; height: 8px }
.plot text { fill: var(--muted) }
.plot .title { fill: var(--ink); font-size: 13px; font-weight: 600 }
.plot .name { fill: var(--ink) }
.plot .ground { fill: Canvas; color-scheme: light dark }
.plot .grid { stroke: var(--grid) }
.plot .level { stroke: var(--muted); stroke-dasharray: 2 3 }
.plot .whisker { stroke: var(--ink) }
.plot .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.plot .s1 { stroke: var(--c1) }
.plot .s2 { stroke: var(--c2); stroke-dasharray: 6 3 }
.plot .s3 { stroke: var(--c3); stroke-dasharray: 2 3.5 }
.plot .s4 { stroke: var(--c4); stroke-dasharray: 9 3 2 3 }
.plot .s5 { stroke: var(--c5); stroke-dasharray: 1 5 }
.plot .faint { opacity: .3; stroke-width: 1; stroke-dasharray: none }
.plot .f1 { fill: var(--c1) }
.plot .f2 { fill: var(--c2) }
.plot .f3 { fill: var(--c3) }
.plot .f4 { fill: var(--c4) }
.plot .f5 { fill: var(--c5) }
"""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart: headings and SVG elements. As text it is an ``<svg>`` for a page with `STYLE`."""

    title: str
    y_label: str
    height: int
    marks: Sequence[str]

    def elements(self) -> list[str]:
        """The elements, headings first."""
        return [text(0, 14, self.title, "title"), text(0, TOP - 14, self.y_label), *self.marks]

    def __str__(self) -> str:
        return _svg(self.title, (0, 0, WIDTH, self.height), self.elements())

    def __html__(self) -> str:
        """What a Jinja template inserts unescaped: every text in the marks is escaped already."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) joined by a line; one that is not finite leaves a gap.

    `behind` are the points before smoothing, drawn faintly. Where points are few, they have dots.
    """

    name: str
    points: Sequence[Point]
    behind: Sequence[Point] = ()
    has_dots: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """A value for each name of a bar chart."""

    name: str
    values: Sequence[float]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[tuple[float, str]] = (),
    y_range: Interval | None = None,
    is_log: bool = False,
    has_legend: bool = True,
) -> Drawing:
    """Lines over a common x, at most `MOST_COLOURS` of them; labels hold the units.

    `levels` are values of y to mark with a dotted line, with a name each. `y_range` is the least
    reach of y. If `is_log`, x is logarithmic. Drawings that share one key have no legend each.
    """
    points = [p for s in series for p in (*s.points, *s.behind) if _is_finite(p)]
    if not points:
        return _nothing(title, y_label)
    xs = [x for x, _ in points]
    ys = [y for _, y in points] + [value for value, _ in levels] + list(y_range or ())
    y_ticks = nice_ticks(min(ys), max(ys))
    low, high = min(xs), max(xs)
    if is_log:
        x_ticks = log_ticks(low, high)
    else:
        x_ticks = [tick for tick in nice_ticks(low, high, 6) if low <= tick <= high] or [low]
    area = axes(x_ticks, y_ticks, x_label=x_label, x_range=(low, high), is_log=is_log)
    marks = area.marks + (legend([s.name for s in series]) if has_legend else [])
    for value, name in levels:
        marks.append(line(area.x.start, area.y(value), area.x.end, area.y(value), "level"))
        marks.append(text(area.x.end, area.y(value) - 4, name, anchor="end"))
    for number, each in enumerate(series, 1):
        marks += _path(area, each.behind, f"line faint s{number}")
    for number, each in enumerate(series, 1):
        marks += _path(area, each.points, f"line s{number}")
        if each.has_dots or len(each.points) == 1:
            finite = filter(_is_finite, each.points)
            marks += [dot(area.x(x), area.y(y), f"f{number}") for x, y in finite]
    return Drawing(title, y_label, HEIGHT, marks)


def bar_chart(
    title: str,
    names: Sequence[str],
    bars: Sequence[Bars],
    *,
    label: str,
    x_range: Interval | None = None,
) -> Drawing:
    """Horizontal bars, one for each name and series; a lone series has its values written out.

    `label` is what the values are, with their unit; `x_range` their least reach, 0 included.
    """
    finite = [v for b in bars for v in b.values if math.isfinite(v)]
    if not finite:
        return _nothing(title, "")
    labels = [name if len(name) <= 18 else name[:17] + "\u2026" for name in names]
    is_single = len(bars) == 1
    thick = 14 if is_single else 9
    row = thick * len(bars) + 8
    top = TOP - 18 if is_single else TOP
    bottom = top + row * len(names)
    reach = [0.0, *finite, *(x_range or ())]
    ticks = nice_ticks(min(reach), max(reach))
    left = 8 + _CHARACTER * max(map(len, labels))
    x = Scale(ticks[0], ticks[-1], left, WIDTH - RIGHT - 24)
    marks = legend([b.name for b in bars], "area")
    for tick, name in zip(ticks, tick_labels(ticks), strict=True):
        marks.append(line(x(tick), top, x(tick), bottom, "grid"))
        marks.append(text(x(tick), bottom + 16, name, anchor="middle"))
    marks.append(text((x.start + x.end) / 2, bottom + BOTTOM - 8, label, anchor="middle"))
    for index, name in enumerate(labels):
        y = top + row * index + 4
        marks.append(text(left - 6, y + (row - 8) / 2 + 4, name, "name", anchor="end"))
        for number, each in enumerate(bars):
            value = each.values[index]
            if math.isfinite(value):
                start, end = sorted((x(0.0), x(value)))
                at = y + thick * number
                marks.append(rectangle(start, at, end - start, thick - 1, f"f{number + 1}"))
                if is_single:
                    shown = tick_labels([value])[0]
                    marks.append(text(x(max(0.0, value)) + 4, y + thick - 3, shown))
    return Drawing(title, "", bottom + BOTTOM, marks)


def standalone(*drawings: Drawing) -> str:
    """Drawings one below the other as an SVG file, with the style sheet and a background."""
    marks = [f"<style>{escape(STYLE)}</style>"]
    marks.append('<rect x="-8" y="-4" width="100%" height="100%" class="ground"/>')
    top = 0
    for drawing in drawings:
        marks += [f'<g transform="translate(0 {top})">', *drawing.elements(), "</g>"]
        top += drawing.height + 12
    title = ", ".join(drawing.title for drawing in drawings)
    return _svg(title, (-8, -4, WIDTH + 16, top + 4), marks) + "\n"


def swatch(number: int) -> str:
    """A piece of the line of a series, counted from 1, for a key in the text of a page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot swatch" viewBox="0 0 32 8">'
        f"{line(1, 4, 31, 4, f'line s{number}')}</svg>"
    )


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
    left, right = round(12 + _CHARACTER * max(map(len, y_names))), WIDTH - RIGHT
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


def legend(names: Sequence[str], shape: str = "line") -> list[str]:
    """Names of the series at the right, above the plotting area; none where there is only one."""
    if len(names) < 2:
        return []
    marks = []
    right = float(WIDTH - RIGHT)
    for number, name in reversed(list(enumerate(names, 1))):
        right -= _CHARACTER * len(name)
        marks.append(text(right, TOP - 14, name, "name"))
        if shape == "line":
            marks.append(line(right - 24, TOP - 18, right - 5, TOP - 18, f"line s{number}"))
        else:
            marks.append(rectangle(right - 14, TOP - 23, 9, 9, f"f{number}"))
        right -= 34 if shape == "line" else 24
    return marks


def text(x: float, y: float, content: str, css: str = "", *, anchor: str = "start") -> str:
    """A line of text; what XML does not allow is replaced."""
    style = f' class="{css}"' if css else ""
    side = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{style}{side}>{escape(_printable(content))}</text>'


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


def _path(area: Axes, points: Sequence[Point], css: str) -> Iterator[str]:
    """A line through the finite points, interrupted where one is not."""
    steps, command = "", "M"
    for x, y in points:
        if _is_finite((x, y)):
            steps += f"{command}{area.x(x):.1f} {area.y(y):.1f}"
        command = "L" if _is_finite((x, y)) else "M"
    if steps:
        yield f'<path d="{steps}" class="{css}"/>'


def _is_finite(point: Point) -> bool:
    return all(map(math.isfinite, point))


def _nothing(title: str, y_label: str) -> Drawing:
    return Drawing(title, y_label, 80, [text(0, 60, "nothing to show")])


def _decimals(value: float) -> int:
    return len(f"{value:.10f}".rstrip("0").partition(".")[2])


def _scientific(value: float) -> str:
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    if float(mantissa) == 0:
        return "0"
    return _signed(f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}")


def _signed(number: str) -> str:
    return number.replace("-", "\u2212") if number.strip("-0.") else number.lstrip("-")


def _svg(title: str, box: tuple[int, int, int, int], marks: Sequence[str]) -> str:
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" class="plot" '
        f'viewBox="{" ".join(map(str, box))}" role="img" aria-label={quoteattr(_printable(title))}>'
    )
    return "\n".join([head, *marks, "</svg>"])


def _printable(content: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in content)
