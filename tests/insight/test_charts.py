"""Charts are well-formed, put values where they belong, and survive what runs produce."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from mlx_dpo.insight.axes import WIDTH
from mlx_dpo.insight.charts import (
    STYLE,
    Bars,
    Drawing,
    Series,
    bar_chart,
    line_chart,
    standalone,
)

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script> & \"'\x1b\x00\ud83d"


def parsed(svg: Drawing | str) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def texts(svg: Drawing | str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}text")]


def lines(svg: Drawing | str, css: str) -> list[list[tuple[float, float]]]:
    """Points of the paths of a class."""
    found = []
    for path in parsed(svg).iter(f"{SVG}path"):
        if path.get("class") == css:
            numbers = re.findall(r"-?[\d.]+", path.get("d", ""))
            found.append(
                [(float(x), float(y)) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]
            )
    return found


def test_a_line_rises_with_its_values_between_its_ticks() -> None:
    svg = line_chart(
        "loss", [Series("train", [(0, 0.0), (5, 0.5), (10, 1.0)])], x_label="step", y_label="nats"
    )
    ((left, middle, right),) = lines(svg, "line s1")
    assert right[0] == WIDTH - 14
    assert middle == pytest.approx(((left[0] + right[0]) / 2, (left[1] + right[1]) / 2), abs=0.11)
    assert left[1] > right[1]  # SVG counts y from the top
    grid = [points[0][1] for points in lines(svg, "grid") if points[0][1] == points[1][1]]
    assert (max(grid), min(grid)) == (left[1], right[1])
    assert {"loss", "step", "nats", "0.0", "1.0", "10"} <= set(texts(svg))
    assert "train" not in texts(svg)  # one line needs no legend


def test_a_level_is_inside_the_axes_and_named() -> None:
    svg = line_chart(
        "loss", [Series("a", [(0, 0.1)])], x_label="x", y_label="y", levels=[(0.69, "log 2")]
    )
    ((start, end),) = lines(svg, "level")
    assert start[1] == end[1]
    assert "log 2" in texts(svg)


def test_what_is_not_finite_leaves_a_gap() -> None:
    points = [(0, 1.0), (1, math.nan), (2, 2.0), (3, math.inf), (4, 1.0), (5, 1.5)]
    svg = line_chart("t", [Series("a", points)], x_label="x", y_label="y")
    (path,) = [p for p in parsed(svg).iter(f"{SVG}path") if p.get("class") == "line s1"]
    assert path.get("d", "").count("M") == 3
    assert "nan" not in str(svg)
    assert "inf" not in str(svg)
    empty = line_chart("t", [Series("a", [(0, math.nan)])], x_label="x", y_label="y")
    assert "nothing to show" in texts(empty)


def test_logarithmic_values_are_evenly_apart_by_factor() -> None:
    series = [Series("a", [(0.01, 1), (0.1, 2), (1.0, 3)], has_dots=True), Series("b", [(1.0, 1)])]
    svg = line_chart("t", series, x_label="beta", y_label="y", is_log=True)
    (one, two, three) = (x for x, _ in lines(svg, "line s1")[-1])
    assert two - one == pytest.approx(three - two, abs=0.2)
    assert len(list(parsed(svg).iter(f"{SVG}circle"))) == 4
    assert {"a", "b", "0.01", "0.5", "1"} <= set(texts(svg))


def test_bars_reach_from_zero_to_their_value() -> None:
    svg = bar_chart("t", ["up", "down"], [Bars("a", [3.0, -1.5])], label="pairs")
    up, down = (bar for bar in parsed(svg).iter(f"{SVG}rect") if bar.get("class") == "f1")
    assert float(up.get("width", 0)) == pytest.approx(2 * float(down.get("width", 0)), abs=0.2)
    zero = float(up.get("x", 0))
    assert float(down.get("x", 0)) + float(down.get("width", 0)) == pytest.approx(zero, abs=0.2)
    assert {"up", "down", "3", "\u22121.5"} <= set(texts(svg))
    two = bar_chart("t", ["k"], [Bars("a", [0.5]), Bars("b", [1.0])], label="x")
    assert {"a", "b"} <= set(texts(two))


@pytest.mark.parametrize(
    "chart",
    [
        line_chart(HOSTILE, [Series(HOSTILE, [(0, 1)])] * 5, x_label=HOSTILE, y_label=HOSTILE),
        bar_chart(HOSTILE, [HOSTILE], [Bars(HOSTILE, [1.0])] * 2, label=HOSTILE),
        bar_chart("t", [], [], label="x"),
    ],
)
def test_names_from_data_cannot_break_out(chart: Drawing) -> None:
    for text in (str(chart), standalone(chart)):
        root = parsed(text)
        assert not list(root.iter(f"{SVG}script"))
        assert "\x1b" not in text
        text.encode()
    assert STYLE.strip()[:20] in standalone(chart)


def test_drawings_of_one_file_are_below_one_another_and_all_within_it() -> None:
    first = line_chart("one", [Series("a", [(0, 1), (1, 2)])], x_label="x", y_label="y")
    second = bar_chart("two", ["k"], [Bars("", [1.0])], label="z")
    root = parsed(standalone(first, second))
    groups = list(root.iter(f"{SVG}g"))
    assert [group.get("transform") for group in groups] == [
        "translate(0 0)",
        f"translate(0 {first.height + 12})",
    ]
    assert [group.findtext(f"{SVG}text") for group in groups] == ["one", "two"]
    _, top, _, height = map(int, root.get("viewBox", "").split())
    assert top + height >= first.height + 12 + second.height


def told(svg: Drawing | str) -> list[str]:
    """What a pointer is told, from left to right and from top to bottom."""
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}title")]


def test_a_pointer_is_told_step_and_values_side_by_side_over_the_whole_plot() -> None:
    training = Series("training", [(1, 0.5), (2, 0.25), (3, 0.125)], behind=[(2, 0.75)])
    held_out = Series("held out", [(3, 0.6931)], has_dots=True)
    svg = line_chart("loss", [training, held_out], x_label="step, from 1", y_label="nats")
    assert told(svg) == [
        "step 1\ntraining 0.5",
        "step 2\ntraining 0.75 (mean 0.25)",
        "step 3\ntraining 0.125\nheld out 0.6931",
    ]
    bands = [hit for hit in parsed(svg).iter(f"{SVG}rect") if hit.get("class") == "hit"]
    edges = [(float(b.get("x", 0)), float(b.get("width", 0))) for b in bands]
    assert edges[0][0] == lines(svg, "grid")[0][0][0]
    assert sum(edges[-1]) == pytest.approx(WIDTH - 14, abs=0.11)
    for (x, width), (next_x, _) in pairwise(edges):
        assert x + width == pytest.approx(next_x, abs=0.11)


def test_a_dot_may_have_an_interval_and_the_axis_holds_it() -> None:
    series = Series("", [(1, 0.5), (2, 0.75)], has_dots=True, intervals=[(0.25, 1.5), (0.5, 1.0)])
    svg = line_chart("t", [series], x_label="x", y_label="y")
    ((left, middle),) = lines(svg, "line s1")
    one, two = lines(svg, "whisker")
    assert (one[0][0], two[0][0]) == (left[0], middle[0])
    assert one[1][1] < two[1][1] < middle[1] < left[1] == two[0][1] < one[0][1]
    assert "1.5" in texts(svg)


def test_of_many_points_some_are_told_and_every_dot() -> None:
    many = Series("a", [(n, 1.0) for n in range(1000)])
    dots = Series("b", [(3, 2.0), (501, 2.0)], has_dots=True)
    found = told(line_chart("t", [many, dots], x_label="step", y_label="y"))
    assert len(found) < 100
    assert sum("b 2" in each for each in found) == 2
    assert all("a 1" in each for each in found)


def test_bars_tell_their_values_and_intervals_and_a_long_name_in_full() -> None:
    name = "a kind with a name that is far too long for a bar"
    bars = [Bars("SFT", [0.5], [(0.25, 0.75)]), Bars("DPO", [math.nan])]
    svg = bar_chart("t", [name], bars, label="x")
    assert told(svg) == [f"{name}\nSFT 0.5 (0.25 to 0.75)\nDPO not finite"]
    ((start, end),) = lines(svg, "whisker")
    _, bar = (b for b in parsed(svg).iter(f"{SVG}rect") if b.get("class") == "f1")  # after its key
    middle = float(bar.get("x", 0)) + float(bar.get("width", 0))
    assert (start[0] + end[0]) / 2 == pytest.approx(middle, abs=0.11)
    assert "without --checkpoint-layers" in texts(
        bar_chart("t", ["without --checkpoint-layers"], [Bars("", [1.0])], label="MiB")
    )


def test_a_long_title_takes_another_line_and_what_is_below_moves_down() -> None:
    title = "What a step's peak consists of, without --checkpoint-layers"
    svg = bar_chart(title, ["k"], [Bars("", [1.0])], label="MiB")
    first, second = texts(svg)[:2]
    assert f"{first} {second}" == title
    (moved,) = parsed(svg).iter(f"{SVG}g")
    assert moved.get("transform") == f"translate(0 {svg.full_height - svg.height})"
    assert parsed(svg).get("viewBox", "").endswith(str(svg.full_height))


def test_every_class_has_a_colour_in_light_and_dark() -> None:
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    for name in ("--ink", "--muted", "--grid", "--c1", "--c2", "--c3", "--c4"):
        assert name in light
        assert name in dark.split("}\n}")[0]
