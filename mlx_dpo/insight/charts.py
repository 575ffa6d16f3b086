"""Line charts, bars and the reliability diagram. Each returns an SVG element as text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_dpo.insight import drawing as draw
from mlx_dpo.insight.drawing import log_ticks, nice_ticks, tick_labels

HEIGHT = 230
Point = tuple[float, float]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """Points joined by a line; one that is not finite leaves a gap.

    Attributes:
        name: What the legend calls it.
        points: x and y.
        behind: The same before it was smoothed, drawn faintly behind.
        has_dots: Whether each point is marked: where they are few.
    """

    name: str
    points: Sequence[Point]
    behind: Sequence[Point] = ()
    has_dots: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """A value for each name of a bar chart, with its interval where there is one."""

    name: str
    values: Sequence[float]
    intervals: Sequence[Interval] = ()


@dataclass(frozen=True, slots=True)
class Reliability:
    """A point of a reliability diagram: said, and happened (with its interval), both shares."""

    predicted: float
    observed: float
    interval: Interval


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
) -> str:
    """Lines over a common x.

    Args:
        title: Above the drawing.
        series: At most `drawing.MOST_COLOURS`.
        x_label: With its unit.
        y_label: With its unit.
        levels: Values of y to mark with a dotted line, and what they are.
        y_range: Least reach of y; by default what the points need.
        is_log: Whether x is logarithmic.
        has_legend: Whether the lines are named; without, where one key stands by many drawings.
    """
    points = [p for s in series for p in (*s.points, *s.behind) if all(map(math.isfinite, p))]
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
    area = draw.axes(
        x_ticks, y_ticks, x_label=x_label, height=HEIGHT, x_range=(low, high), is_log=is_log
    )
    names = [s.name for s in series] if has_legend else []
    marks = [*area.marks, *draw.legend(names)]
    for value, name in levels:
        marks.append(draw.line(area.x.start, area.y(value), area.x.end, area.y(value), "level"))
        marks.append(draw.text(area.x.end, area.y(value) - 4, name, anchor="end"))
    for number, one in enumerate(series, 1):
        marks.append(_path(area, one.behind, f"line faint {draw.stroke(number)}"))
    for number, one in enumerate(series, 1):
        marks.append(_path(area, one.points, f"line {draw.stroke(number)}"))
        alone = one.has_dots or len(one.points) == 1
        marks += [_dot(area, p, draw.fill(number)) for p in one.points if alone and _is_finite(p)]
    return draw.drawing(title, y_label, HEIGHT, list(filter(None, marks)))


def bar_chart(
    title: str,
    names: Sequence[str],
    bars: Sequence[Bars],
    *,
    label: str,
    x_range: Interval | None = None,
) -> str:
    """Horizontal bars, one for each name and series; a lone series has its values written out.

    Args:
        title: Above the drawing.
        names: What the rows are, from the top.
        bars: A value for each name in each.
        label: What the values are, with their unit.
        x_range: Least reach of the values; 0 is always shown.
    """
    finite = [v for b in bars for v in b.values if math.isfinite(v)]
    if not finite:
        return _nothing(title, "")
    shown = [draw.shortened(name, 18) for name in names]
    thick = 14 if len(bars) == 1 else 9
    row = thick * len(bars) + 8
    top = draw.TOP if len(bars) > 1 else draw.TOP - 18
    height = round(top + row * len(names) + draw.BOTTOM)
    ticks = nice_ticks(*_reach([0.0, *finite, *(x_range or ())]))
    left = 8 + draw.name_width(shown)
    x = draw.Scale(ticks[0], ticks[-1], left, draw.WIDTH - draw.RIGHT - 24)
    marks = draw.legend([b.name for b in bars], "area")
    for tick, name in zip(ticks, tick_labels(ticks), strict=True):
        marks.append(draw.line(x(tick), top, x(tick), height - draw.BOTTOM, "grid"))
        marks.append(draw.text(x(tick), height - draw.BOTTOM + 16, name, anchor="middle"))
    marks.append(draw.text((x.start + x.end) / 2, height - 8, label, anchor="middle"))
    for place, name in enumerate(shown):
        y = top + row * place + 4
        marks.append(draw.text(left - 6, y + (row - 8) / 2 + 4, name, "name", anchor="end"))
        for number, one in enumerate(bars):
            marks += _bar(x, y + thick * number, thick, one, place, number + 1)
            if len(bars) == 1:
                value = tick_labels([one.values[place]])[0]
                marks.append(draw.text(x(max(0.0, one.values[place])) + 4, y + thick - 3, value))
    return draw.drawing(title, "", height, marks)


def reliability_diagram(title: str, points: Sequence[Reliability]) -> str:
    """How sure a policy is of its picks against how often they are right, with the diagonal."""
    ticks = nice_ticks(0.0, 1.0)
    x_ticks = nice_ticks(0.5, 1.0)
    area = draw.axes(
        x_ticks, ticks, x_label="predicted: \u03c3(|margin|)", height=HEIGHT, x_range=(0.5, 1.0)
    )
    x, y = area.x, area.y
    marks = [
        *area.marks,
        draw.line(x(0.5), y(0.5), x(1.0), y(1.0), "level"),
        draw.text(x(0.97), y(0.97) + 26, "calibrated", anchor="end"),
    ]
    for point in points:
        place = x(point.predicted)
        marks.append(draw.line(place, y(point.interval[0]), place, y(point.interval[1]), "whisker"))
        marks.append(_dot(area, (point.predicted, point.observed), "f1"))
    return draw.drawing(title, "share of picks that are right (95 % interval)", HEIGHT, marks)


def _path(area: draw.Axes, points: Sequence[Point], css: str) -> str:
    steps = "".join(
        f"{'M' if starts else 'L'}{area.x(x):.1f} {area.y(y):.1f}"
        for starts, (x, y) in _with_gaps(points)
    )
    return f'<path d="{steps}" class="{css}"/>' if steps else ""


def _with_gaps(points: Sequence[Point]) -> Iterator[tuple[bool, Point]]:
    """Finite points, each with whether a line begins there."""
    starts = True
    for point in points:
        if _is_finite(point):
            yield starts, point
        starts = not _is_finite(point)


def _is_finite(point: Point) -> bool:
    return all(map(math.isfinite, point))


def _dot(area: draw.Axes, point: Point, css: str) -> str:
    x, y = area.x(point[0]), area.y(point[1])
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{css}"/>'


def _bar(
    x: draw.Scale, y: float, thick: float, bars: Bars, place: int, number: int
) -> Iterator[str]:
    value = bars.values[place]
    if not math.isfinite(value):
        return
    start, end = sorted((x(0.0), x(value)))
    yield draw.rectangle(start, y, end - start, thick - 1, draw.fill(number))
    if bars.intervals:
        low, high = bars.intervals[place]
        middle = y + (thick - 1) / 2
        yield draw.line(x(low), middle, x(high), middle, "whisker")


def _reach(values: Sequence[float]) -> Interval:
    return min(values), max(values)


def _nothing(title: str, y_label: str) -> str:
    return draw.drawing(title, y_label, 80, [draw.text(0, 60, "nothing to show")])
