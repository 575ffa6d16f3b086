"""Line charts, bar charts and the reliability diagram."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_dpo.insight import drawing as draw
from mlx_dpo.insight.drawing import Drawing, log_ticks, nice_ticks, tick_labels

HEIGHT = 230
Point = tuple[float, float]
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """Points joined by a line; one that is not finite leaves a gap.

    Attributes:
        name: For the legend.
        points: x and y.
        behind: The same before smoothing, drawn faintly behind.
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
class ReliabilityPoint:
    """A confidence, and the share of outcomes observed at it, with its interval."""

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
) -> Drawing:
    """Lines over a common x.

    Args:
        title: Above the drawing.
        series: At most `drawing.MOST_COLOURS`.
        x_label: With its unit.
        y_label: With its unit.
        levels: Values of y to mark with a dotted line, and what they are.
        y_range: Least reach of y; by default what the points need.
        is_log: Whether x is logarithmic.
        has_legend: Whether the lines are named; False where many drawings share one key.
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
    area = draw.axes(
        x_ticks, y_ticks, x_label=x_label, height=HEIGHT, x_range=(low, high), is_log=is_log
    )
    names = [s.name for s in series] if has_legend else []
    marks = [*draw.headings(title, y_label), *area.marks, *draw.legend(names)]
    for value, name in levels:
        marks.append(draw.line(area.x.start, area.y(value), area.x.end, area.y(value), "level"))
        marks.append(draw.text(area.x.end, area.y(value) - 4, name, anchor="end"))
    for number, each in enumerate(series, 1):
        marks += _path(area, each.behind, f"line faint {draw.stroke(number)}")
    for number, each in enumerate(series, 1):
        marks += _path(area, each.points, f"line {draw.stroke(number)}")
        if each.has_dots or len(each.points) == 1:
            marks += [_dot(area, p, draw.fill(number)) for p in each.points if _is_finite(p)]
    return Drawing(title, HEIGHT, marks)


def bar_chart(
    title: str,
    names: Sequence[str],
    bars: Sequence[Bars],
    *,
    label: str,
    x_range: Interval | None = None,
) -> Drawing:
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
    is_single = len(bars) == 1
    thick = 14 if is_single else 9
    row = thick * len(bars) + 8
    top = draw.TOP - 18 if is_single else draw.TOP
    height = round(top + row * len(names) + draw.BOTTOM)
    reach = [0.0, *finite, *(x_range or ())]
    ticks = nice_ticks(min(reach), max(reach))
    left = 8 + draw.name_width(shown)
    x = draw.Scale(ticks[0], ticks[-1], left, draw.WIDTH - draw.RIGHT - 24)
    marks = [*draw.headings(title, ""), *draw.legend([b.name for b in bars], "area")]
    for tick, name in zip(ticks, tick_labels(ticks), strict=True):
        marks.append(draw.line(x(tick), top, x(tick), height - draw.BOTTOM, "grid"))
        marks.append(draw.text(x(tick), height - draw.BOTTOM + 16, name, anchor="middle"))
    marks.append(draw.text((x.start + x.end) / 2, height - 8, label, anchor="middle"))
    for index, name in enumerate(shown):
        y = top + row * index + 4
        marks.append(draw.text(left - 6, y + (row - 8) / 2 + 4, name, "name", anchor="end"))
        for number, each in enumerate(bars):
            marks += _bar(x, y + thick * number, thick, each, index, number + 1)
            if is_single:
                value = each.values[index]
                label_x = x(max(0.0, value)) + 4
                marks.append(draw.text(label_x, y + thick - 3, tick_labels([value])[0]))
    return Drawing(title, height, marks)


def reliability_diagram(title: str, points: Sequence[ReliabilityPoint]) -> Drawing:
    """How sure a policy is of its picks against how often they are right, with the diagonal."""
    area = draw.axes(
        nice_ticks(0.5, 1.0),
        nice_ticks(0.0, 1.0),
        x_label="predicted: \u03c3(|margin|)",
        height=HEIGHT,
        x_range=(0.5, 1.0),
    )
    x, y = area.x, area.y
    marks = [
        *draw.headings(title, "share of picks that are right (95 % interval)"),
        *area.marks,
        draw.line(x(0.5), y(0.5), x(1.0), y(1.0), "level"),
        draw.text(x(0.97), y(0.97) + 26, "calibrated", anchor="end"),
    ]
    for point in points:
        at = x(point.predicted)
        marks.append(draw.line(at, y(point.interval[0]), at, y(point.interval[1]), "whisker"))
        marks.append(_dot(area, (point.predicted, point.observed), "f1"))
    return Drawing(title, HEIGHT, marks)


def _path(area: draw.Axes, points: Sequence[Point], css: str) -> Iterator[str]:
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


def _dot(area: draw.Axes, point: Point, css: str) -> str:
    x, y = area.x(point[0]), area.y(point[1])
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{css}"/>'


def _bar(
    x: draw.Scale, y: float, thick: float, bars: Bars, index: int, number: int
) -> Iterator[str]:
    value = bars.values[index]
    if not math.isfinite(value):
        return
    start, end = sorted((x(0.0), x(value)))
    yield draw.rectangle(start, y, end - start, thick - 1, draw.fill(number))
    if bars.intervals:
        low, high = bars.intervals[index]
        middle = y + (thick - 1) / 2
        yield draw.line(x(low), middle, x(high), middle, "whisker")


def _nothing(title: str, y_label: str) -> Drawing:
    marks = [*draw.headings(title, y_label), draw.text(0, 60, "nothing to show")]
    return Drawing(title, 80, marks)
