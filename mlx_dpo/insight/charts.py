"""Line charts and bar charts."""

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
    """Lines over a common x, at most `drawing.MOST_COLOURS` of them; labels hold the units.

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
    area = draw.axes(
        x_ticks, y_ticks, x_label=x_label, height=HEIGHT, x_range=(low, high), is_log=is_log
    )
    names = [s.name for s in series] if has_legend else []
    marks = [*area.marks, *draw.legend(names)]
    for value, name in levels:
        marks.append(draw.line(area.x.start, area.y(value), area.x.end, area.y(value), "level"))
        marks.append(draw.text(area.x.end, area.y(value) - 4, name, anchor="end"))
    for number, each in enumerate(series, 1):
        marks += _path(area, each.behind, f"line faint s{number}")
    for number, each in enumerate(series, 1):
        marks += _path(area, each.points, f"line s{number}")
        if each.has_dots or len(each.points) == 1:
            finite = filter(_is_finite, each.points)
            marks += [draw.dot(area.x(x), area.y(y), f"f{number}") for x, y in finite]
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
    top = draw.TOP - 18 if is_single else draw.TOP
    height = round(top + row * len(names) + draw.BOTTOM)
    reach = [0.0, *finite, *(x_range or ())]
    ticks = nice_ticks(min(reach), max(reach))
    left = 8 + draw.CHARACTER * max(map(len, labels))
    x = draw.Scale(ticks[0], ticks[-1], left, draw.WIDTH - draw.RIGHT - 24)
    marks = draw.legend([b.name for b in bars], "area")
    for tick, name in zip(ticks, tick_labels(ticks), strict=True):
        marks.append(draw.line(x(tick), top, x(tick), height - draw.BOTTOM, "grid"))
        marks.append(draw.text(x(tick), height - draw.BOTTOM + 16, name, anchor="middle"))
    marks.append(draw.text((x.start + x.end) / 2, height - 8, label, anchor="middle"))
    for index, name in enumerate(labels):
        y = top + row * index + 4
        marks.append(draw.text(left - 6, y + (row - 8) / 2 + 4, name, "name", anchor="end"))
        for number, each in enumerate(bars):
            value = each.values[index]
            if math.isfinite(value):
                start, end = sorted((x(0.0), x(value)))
                at = y + thick * number
                marks.append(draw.rectangle(start, at, end - start, thick - 1, f"f{number + 1}"))
                if is_single:
                    shown = tick_labels([value])[0]
                    marks.append(draw.text(x(max(0.0, value)) + 4, y + thick - 3, shown))
    return Drawing(title, "", height, marks)


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


def _nothing(title: str, y_label: str) -> Drawing:
    return Drawing(title, y_label, 80, [draw.text(0, 60, "nothing to show")])
