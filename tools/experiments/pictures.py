"""What the notebook shows beside tables: charts, histograms, tokens with their mask, answers."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import fmean

from mlx_dpo.insight.axes import nice_ticks, tick_labels
from mlx_dpo.insight.charts import (
    STYLE,
    Bars,
    Drawing,
    Series,
    bar_chart,
    line_chart,
)

# With a background of its own: a chart's colours follow the system, a notebook's page may not.
_GROUND = "color-scheme: light dark; background: Canvas; color: CanvasText; padding: .5rem 0"
_TOKEN = "display: inline-block; margin: 1px; padding: 0 .3em; border: 1px solid #8888"
_SCORED = "background: #0072b2; color: #fff"
_CELL = "text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0"
_MOST_BINS = 10


@dataclass(frozen=True, slots=True, repr=False)
class Picture:
    """HTML that a notebook shows where a cell ends in it."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def beside(*drawings: Drawing) -> Picture:
    """Charts beside each other, or below where the page is narrow."""
    places = "".join(
        f'<div style="flex: 1 1 20rem; max-width: 27rem">{drawing}</div>' for drawing in drawings
    )
    style = f"{_GROUND}; display: flex; flex-wrap: wrap; gap: 1rem 2rem"
    return Picture(f'<style>{STYLE}</style><div style="{style}">{places}</div>')


def curves(
    title: str,
    lines: Mapping[str, Sequence[float]],
    *,
    y_label: str = "loss, nats",
    levels: Sequence[tuple[float, str]] = ((math.log(2), "log 2"),),
    more: Sequence[Series] = (),
) -> Drawing:
    """Values of each step, jagged as they are, as means of ten with the steps faintly behind.

    Args:
        title: Of the chart.
        lines: Values from the first step on, by name.
        y_label: What they are, with their unit.
        levels: As of `line_chart`.
        more: Other lines, over the number of steps made.
    """
    smooth = [
        Series(name, [*enumerate(running_mean(values))], behind=[*enumerate(values)])
        for name, values in lines.items()
    ]
    return line_chart(title, [*smooth, *more], x_label="step", y_label=y_label, levels=levels)


def running_mean(values: Sequence[float], width: int = 10) -> list[float]:
    """The mean of each value and of those before it, `width` together; fewer at the start."""
    return [fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]


def histogram(title: str, groups: Mapping[str, Sequence[float]], *, label: str) -> Drawing:
    """How the values of each group are spread, in bins that all groups share.

    Args:
        title: Of the chart.
        groups: Values by the name of their group; at least one value each. A value on the edge of
            two bins counts in the upper one.
        label: What is counted; the bars are in percent of it.
    """
    names, bars = binned(groups)
    return bar_chart(title, names, bars, label=f"% of {label}")


def binned(groups: Mapping[str, Sequence[float]]) -> tuple[list[str], list[Bars]]:
    """Names of the bins, and for each group the percentage of its values in each."""
    every = [value for values in groups.values() for value in values]
    edges = nice_ticks(min(every), max(every), _MOST_BINS)
    bars = []
    for name, values in groups.items():
        shares = [0.0] * (len(edges) - 1)
        for value in values:
            shares[min(bisect_right(edges, value), len(edges) - 1) - 1] += 100 / len(values)
        bars.append(Bars(name, [round(share, 1) for share in shares]))
    return [f"{low} to {high}" for low, high in pairwise(tick_labels(edges))], bars


def tokens(rows: Mapping[str, Sequence[tuple[str, bool]]]) -> Picture:
    """Rows of tokens by name: each a text, and whether it is scored, which colours it."""
    lines = []
    for name, row in rows.items():
        spans = "".join(
            f'<span style="{_TOKEN}{"; " + _SCORED if scored else ""}">'
            f"{escape(text).replace(chr(10), '&#8629;') or '&nbsp;'}</span>"
            for text, scored in row
        )
        lines.append(f"<tr><th style='{_CELL}'>{escape(name)}</th><td>{spans}</td></tr>")
    return Picture(f'<div style="{_GROUND}"><table>{"".join(lines)}</table></div>')


def answers(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Picture:
    """A table of texts that users and models wrote."""
    lines = [_row("th", head), *(_row("td", row) for row in rows)]
    return Picture(f'<div style="{_GROUND}"><table>{"".join(lines)}</table></div>')


def _row(tag: str, texts: Sequence[str]) -> str:
    cells = "".join(f"<{tag} style='{_CELL}'>{escape(text)}</{tag}>" for text in texts)
    return f"<tr>{cells}</tr>"
