"""A profile as a picture: memory as time goes on, and what a step's peak consists of."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.files import check_writable, write_file
from mlx_dpo.insight import drawing as draw
from mlx_dpo.insight.charts import Bars, Point, Series, bar_chart, line_chart
from mlx_dpo.runs.profile import Sample

_DRAWN = ("forward", "backward", "update")  # the others share a line
_MOST_POINTS = 400  # a drawing is 350 pixels wide
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px/1.45 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 1rem }}
h1 {{ font-size: 1.2rem }}
figure {{ margin: 1.5rem 0 }}
pre {{ overflow-x: auto; font-size: .75rem }}
{style}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{verdict}</p>
{figures}
<pre>{text}</pre>
</body>
</html>
"""


def check_picture(file: Path) -> None:
    """Refuse a picture that could not be written, before anything is measured.

    Raises:
        UsageError: If the name ends in neither .html nor .svg, or is a folder's.
        DiskError: If the file can't be made.
    """
    if file.suffix not in (".html", ".svg"):
        raise UsageError(f"--out {file}: expected a name that ends in .html or .svg")
    if file.is_dir():
        raise UsageError(f"--out {file}: is a folder; it takes a file")
    check_writable(file)


def write_picture(file: Path, charts: Sequence[str], text: str, verdict: str) -> None:
    """Write charts as a page, or as a drawing alone where the name ends in .svg.

    Args:
        file: A file that is there is replaced.
        charts: SVG, from the top.
        text: The table, for the page.
        verdict: One sentence, for the page.

    Raises:
        DiskError: If it can't be written.
    """
    if file.suffix == ".svg":
        write_file(file, _stacked(charts))
        return
    page = _PAGE.format(
        title="Memory of a DPO step",
        style=draw.STYLE,
        verdict=escape(verdict),
        figures="\n".join(f"<figure>\n{chart}\n</figure>" for chart in charts),
        text=escape(text),
    )
    write_file(file, page)


def profile_charts(found: Mapping[str, Any], samples: Sequence[Sample]) -> list[str]:
    """Memory over time, and a bar for each component.

    Args:
        found: `Profile.as_json`.
        samples: Of its meter.
    """
    return [_over_time(found, samples), _parts(found)]


def compared_charts(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The peak, and the components of a step's, of each value of a setting that was measured."""
    whole = {option: found for option, found in rows.items() if "error" not in found}
    scale, unit = _unit(max(found["peak_bytes"] for found in whole.values()))
    peaks = Bars("", [_rounded(found["peak_bytes"] / scale) for found in whole.values()])
    charts = [bar_chart("Peak of MLX's memory", list(whole), [peaks], label=unit)]
    return charts + [_parts(found, option) for option, found in whole.items()]


def _over_time(found: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    scale, unit = _unit(found["peak_bytes"])
    shown = _thinned([s for s in samples if s.phase not in ("load", "between")])
    series = [
        Series(name, points)
        for name in ("other", *_DRAWN)
        if (points := _points(shown, name, scale))
    ]
    peak = found["peak_bytes"] / scale
    return line_chart(
        f"Memory held over time, {unit}",
        series,
        x_label="seconds; loading is left out",
        y_label="",
        levels=[(peak, f"peak {peak:.3g}")],
        y_range=(0.0, peak * 1.02),
    )


def _points(samples: Sequence[Sample], name: str, scale: float) -> list[Point]:
    """Those of one line; a gap wherever another phase comes between."""
    points: list[Point] = []
    for sample in samples:
        mine = sample.phase == name or (name == "other" and sample.phase not in _DRAWN)
        if mine:
            points.append((sample.seconds, sample.live_bytes / scale))
        elif points and math.isfinite(points[-1][1]):
            points.append((sample.seconds, math.nan))
    return points


def _thinned(samples: list[Sample]) -> list[Sample]:
    """The largest of each few neighbours of a phase: no peak goes, and no phase either."""
    few = max(1, len(samples) // _MOST_POINTS)
    kept: list[Sample] = []
    since = 0
    for sample in samples:
        since += 1
        if kept and kept[-1].phase == sample.phase and since < few:
            kept[-1] = max(kept[-1], sample, key=lambda s: s.live_bytes)
        else:
            kept.append(sample)
            since = 0
    return kept


def _parts(found: Mapping[str, Any], option: str = "") -> str:
    held = found["held_bytes"]
    scale, unit = _unit(max(held.values()))
    values = [_rounded(count / scale) for count in held.values()]
    return bar_chart(
        "What a step's peak consists of" + (f", {option}" if option else ""),
        [{"rest": "activations, rest"}.get(name, name) for name in held],
        [Bars("", values)],
        label=unit,
    )


def _rounded(value: float) -> float:
    """To three digits, because a bar's value is written out beside it."""
    return float(f"{value:.3g}")


def _unit(count: int) -> tuple[float, str]:
    return (2.0**30, "GiB") if count >= 2**30 else (2.0**20, "MiB")


def _stacked(charts: Sequence[str]) -> str:
    """Drawings below one another, as one that stands alone."""
    marks, top = [], 0
    for chart in charts:
        marks.append(f'<g transform="translate(0 {top})">{chart.partition(">" + chr(10))[2]}')
        marks[-1] = marks[-1].removesuffix("</svg>") + "</g>"
        top += _height(chart) + 12
    ground = '<rect width="100%" height="100%" style="fill: Canvas; color-scheme: light dark"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="-8 -4 366 {top + 4}">\n'
    ground = ground.replace("<rect ", '<rect x="-8" y="-4" ')
    return draw.standalone(head + "\n".join([ground, *marks]) + "\n</svg>")


def _height(chart: str) -> int:
    return int(chart.partition('viewBox="0 0 ')[2].partition('"')[0].split()[1])
