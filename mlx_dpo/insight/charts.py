"""Line charts and bar charts as SVG text, with a style sheet.

Sizes are pixels of a drawing 350 wide, which a phone shows unscaled, so that no letter of it is
under 12 pixels; wider places scale it. A browser shows the values below the pointer, by ``<title>``
and better by the script of a report: every element of class ``hit`` has them.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap
from xml.sax.saxutils import escape, quoteattr

from mlx_dpo.insight.axes import (
    BOTTOM,
    CHARACTER,
    HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Axes,
    Interval,
    Scale,
    axes,
    dot,
    line,
    log_ticks,
    nice_ticks,
    printable,
    rectangle,
    text,
    tick_labels,
)

Point = tuple[float, float]

MOST_COLOURS = 5  # classes s1 to s5 of lines and f1 to f5 of areas, by number of the series
_TITLE_LINE = 46  # characters of the 13-pixel title
_NAME = 28  # characters of a bar's name
_MOST_HITS = 80  # places of a chart that tell their values; so many a pointer can tell apart
_LINE = 16  # pixels from one line of a title to the next

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
.plot .hit { fill: transparent; pointer-events: all }
"""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart: headings and SVG elements. As text it is an ``<svg>`` for a page with `STYLE`."""

    title: str
    y_label: str
    height: int
    marks: Sequence[str]

    @property
    def full_height(self) -> int:
        """Pixels with all lines of the title."""
        return self.height + _LINE * (len(self._title_lines()) - 1)

    def elements(self) -> list[str]:
        """The elements, headings first; below a title of several lines everything is lower."""
        first, *others = self._title_lines()
        marks = [text(0, TOP - 14, self.y_label), *self.marks]
        if others:
            marks = [f'<g transform="translate(0 {_LINE * len(others)})">', *marks, "</g>"]
        below = [text(0, 14 + _LINE * n, each, "title") for n, each in enumerate(others, 1)]
        return [text(0, 14, first, "title"), *below, *marks]

    def _title_lines(self) -> list[str]:
        return wrap(self.title, _TITLE_LINE) or [""]

    def __str__(self) -> str:
        return _svg(self.title, (0, 0, WIDTH, self.full_height), self.elements())

    def __html__(self) -> str:
        """What a Jinja template inserts unescaped: every text in the marks is escaped already."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) joined by a line; one that is not finite leaves a gap.

    `behind` are the points before smoothing, drawn faintly. Where points are few, they have dots,
    and may have an interval of y each.
    """

    name: str
    points: Sequence[Point]
    behind: Sequence[Point] = ()
    has_dots: bool = False
    intervals: Sequence[Interval] = ()


@dataclass(frozen=True, slots=True)
class Bars:
    """A value for each name of a bar chart, and its interval where there is one."""

    name: str
    values: Sequence[float]
    intervals: Sequence[Interval] = ()


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[tuple[float, str]] = (),
    x_range: Interval | None = None,
    y_range: Interval | None = None,
    is_log: bool = False,
    has_legend: bool = True,
) -> Drawing:
    """Lines over a common x, at most `MOST_COLOURS` of them; labels hold the units.

    `levels` are values of y to mark with a dotted line, with a name each. `x_range` and `y_range`
    are the least reach of the axes. If `is_log`, x is logarithmic. Drawings that share one key have
    no legend each.
    """
    points = [p for s in series for p in (*s.points, *s.behind) if _is_finite(p)]
    if not points:
        return _nothing(title, y_label)
    xs = [x for x, _ in points] + list(x_range or ())
    ys = [y for _, y in points] + [value for value, _ in levels] + list(y_range or ())
    ys += [bound for each in series for interval in each.intervals for bound in interval]
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
        for (x, _), (low, top) in zip(each.points, each.intervals, strict=False):
            marks.append(line(area.x(x), area.y(low), area.x(x), area.y(top), "whisker"))
    marks += _hits(area, series, re.split("[,;]", x_label)[0])
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
    labels = [name if len(name) <= _NAME else name[: _NAME - 1] + "\u2026" for name in names]
    is_single = len(bars) == 1
    thick = 14 if is_single else 9
    row = thick * len(bars) + 8
    top = TOP - 18 if is_single else TOP
    bottom = top + row * len(names)
    reach = [0.0, *finite, *(x_range or ())]
    ticks = nice_ticks(min(reach), max(reach))
    left = 8 + CHARACTER * max(map(len, labels))
    x = Scale(ticks[0], ticks[-1], left, WIDTH - RIGHT - 24)
    marks = legend([b.name for b in bars], "area")
    for tick, name in zip(ticks, tick_labels(ticks), strict=True):
        marks.append(line(x(tick), top, x(tick), bottom, "grid"))
        marks.append(text(x(tick), bottom + 16, name, anchor="middle"))
    marks.append(text((x.start + x.end) / 2, bottom + BOTTOM - 8, label, anchor="middle"))
    for index, name in enumerate(labels):
        y = top + row * index + 4
        marks.append(text(left - 6, y + (row - 8) / 2 + 4, name, "name", anchor="end"))
        told = []
        for number, each in enumerate(bars):
            marks += _bar(each, index, x, y + thick * number, thick, f"f{number + 1}")
            if is_single and math.isfinite(value := each.values[index]):
                marks.append(text(x(max(0.0, value)) + 4, y + thick - 3, _figure(value)))
            told.append(_told(each, index))
        marks.append(hit((0, y - 4, WIDTH, row), [names[index], *told]))
    return Drawing(title, "", bottom + BOTTOM, marks)


def _bar(bars: Bars, index: int, x: Scale, y: float, thick: int, css: str) -> Iterator[str]:
    """One bar, with a whisker over its interval."""
    value = bars.values[index]
    if not math.isfinite(value):
        return
    start, end = sorted((x(0.0), x(value)))
    yield rectangle(start, y, end - start, thick - 1, css)
    if bars.intervals:
        low, high = bars.intervals[index]
        middle = y + (thick - 1) / 2
        yield line(x(low), middle, x(high), middle, "whisker")


def _told(bars: Bars, index: int) -> str:
    """What a bar tells a pointer."""
    told = f"{bars.name} {_figure(bars.values[index])}".strip()
    if not bars.intervals:
        return told
    return f"{told} ({' to '.join(f'{bound:.2f}' for bound in bars.intervals[index])})"


def standalone(*drawings: Drawing) -> str:
    """Drawings one below the other as an SVG file, with the style sheet and a background."""
    marks = [f"<style>{escape(STYLE)}</style>"]
    marks.append('<rect x="-8" y="-4" width="100%" height="100%" class="ground"/>')
    top = 0
    for drawing in drawings:
        marks += [f'<g transform="translate(0 {top})">', *drawing.elements(), "</g>"]
        top += drawing.full_height + 12
    title = ", ".join(drawing.title for drawing in drawings)
    return _svg(title, (-8, -4, WIDTH + 16, top + 4), marks) + "\n"


def swatch(number: int) -> str:
    """A piece of the line of a series, counted from 1, for a key in the text of a page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot swatch" viewBox="0 0 32 8">'
        f"{line(1, 4, 31, 4, f'line s{number}')}</svg>"
    )


def legend(names: Sequence[str], shape: str = "line") -> list[str]:
    """Names of the series at the right, above the plotting area; none where there is only one."""
    if len(names) < 2:
        return []
    marks = []
    right = float(WIDTH - RIGHT)
    for number, name in reversed(list(enumerate(names, 1))):
        right -= CHARACTER * len(name)
        marks.append(text(right, TOP - 14, name, "name"))
        if shape == "line":
            marks.append(line(right - 24, TOP - 18, right - 5, TOP - 18, f"line s{number}"))
        else:
            marks.append(rectangle(right - 14, TOP - 23, 9, 9, f"f{number}"))
        right -= 34 if shape == "line" else 24
    return marks


def hit(
    box: tuple[float, float, float, float], lines: Sequence[str], at: str = "", dots: str = ""
) -> str:
    """An unseen area (x, y, width, height) that tells what is there.

    Args:
        box: The area.
        lines: What it tells.
        at: The x of a line to draw through it, as text; none if empty.
        dots: What to mark on that line: ``1:40.5 2:60`` are points of the series 1 and 2.
    """
    x, y, width, height = box
    place = f' data-x="{at}" data-dots="{dots}"' if at else ""
    told = escape("\n".join(map(printable, lines)))
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="hit"'
        f"{place}><title>{told}</title></rect>"
    )


def _hits(area: Axes, series: Sequence[Series], x_name: str) -> Iterator[str]:
    """Bands over the plotting area, side by side, each with the values of all series there."""
    tracks = [sorted(filter(_is_finite, each.points)) for each in series]
    behind = [dict(filter(_is_finite, each.behind)) for each in series]
    places = _places(tracks, [each.has_dots for each in series])
    if not places:
        return
    edges = [area.x.start]
    edges += [(area.x(a) + area.x(b)) / 2 for a, b in pairwise(places)]
    edges.append(area.x.end)
    for x, (left, right) in zip(places, pairwise(edges), strict=True):
        lines, dots = [f"{x_name} {_figure(x)}"], []
        for number, (each, track) in enumerate(zip(series, tracks, strict=True), 1):
            near = _nearest(track, x)
            if near is None or not left - 0.1 <= area.x(near[0]) <= right + 0.1:
                continue
            raw = behind[number - 1].get(near[0])
            mean = f" (mean {_figure(near[1])})"
            shown = _figure(near[1]) if raw is None else _figure(raw) + mean
            lines.append(f"{each.name} {shown}".strip())
            dots.append(f"{number}:{area.y(near[1]):.1f}")
        box = (left, area.y.end, right - left, area.y.start - area.y.end)
        yield hit(box, lines, f"{area.x(x):.1f}", " ".join(dots))


def _places(tracks: Sequence[Sequence[Point]], has_dots: Sequence[bool]) -> list[float]:
    """Where values are shown: at every dot, and at some of the other points."""
    dotted = {x for track, dots in zip(tracks, has_dots, strict=True) if dots for x, _ in track}
    others = sorted({x for track in tracks for x, _ in track} - dotted)
    every = max(1, -(-len(others) // _MOST_HITS))
    return sorted(dotted | set(others[::every]))


def _nearest(track: Sequence[Point], x: float) -> Point | None:
    at = bisect_left(track, (x,))
    near = track[max(0, at - 1) : at + 1]
    return min(near, key=lambda point: abs(point[0] - x), default=None)


def _figure(value: float) -> str:
    """A value to read: four digits, a real minus sign."""
    return tick_labels([float(f"{value:.4g}")])[0] if math.isfinite(value) else "not finite"


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


def _svg(title: str, box: tuple[int, int, int, int], marks: Sequence[str]) -> str:
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" class="plot" '
        f'viewBox="{" ".join(map(str, box))}" role="img" aria-label={quoteattr(printable(title))}>'
    )
    return "\n".join([head, *marks, "</svg>"])
