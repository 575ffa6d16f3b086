"""A memory profile as pictures: memory over time, and the components of a step's peak."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.files import check_writable, write_file
from mlx_dpo.insight.charts import Bars, Drawing, Series, bar_chart, line_chart, standalone
from mlx_dpo.insight.report.page import fill_template
from mlx_dpo.runs.meter import MemorySample

_DRAWN = ("forward", "backward", "update")  # phases with a line each; the others share one
_MOST_POINTS = 400  # a drawing is 350 pixels wide


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


def write_picture(file: Path, charts: Sequence[Drawing], table: str, verdict: str) -> None:
    """Write charts as a page with table and verdict, or alone where the name ends in .svg.

    Raises:
        DiskError: If it can't be written.
    """
    if file.suffix == ".svg":
        write_file(file, standalone(*charts))
        return
    title = "Memory of a DPO step"
    memory = {"charts": charts, "table": table, "verdict": verdict}
    write_file(file, fill_template(title=title, memory=memory))


def profile_charts(profile: Mapping[str, Any], samples: Sequence[MemorySample]) -> list[Drawing]:
    """Memory over time, and a bar for each component.

    Args:
        profile: `Profile.as_json`.
        samples: Of its meter.
    """
    scale, unit = _unit(profile["peak_bytes"])
    peak = profile["peak_bytes"] / scale
    shown = list(_thinned([s for s in samples if s.phase not in ("load", "between")]))
    phases = [sample.phase if sample.phase in _DRAWN else "other" for sample in shown]
    series = [
        Series(
            name,
            [
                (s.seconds, s.live_bytes / scale if phase == name else math.nan)
                for s, phase in zip(shown, phases, strict=True)
            ],
        )
        for name in ("other", *_DRAWN)
        if name in phases
    ]
    over_time = line_chart(
        f"Memory held over time, {unit}",
        series,
        x_label="seconds; loading is left out",
        y_label="",
        levels=[(peak, f"peak {peak:.3g}")],
        y_range=(0.0, peak * 1.02),
    )
    return [over_time, _components(profile)]


def compared_charts(profiles: Mapping[str, Mapping[str, Any]]) -> list[Drawing]:
    """The peak, and the components of a step's, for each value of a setting that was measured."""
    whole = {option: profile for option, profile in profiles.items() if "error" not in profile}
    peaks = {option: profile["peak_bytes"] for option, profile in whole.items()}
    return [
        _bytes_chart("Peak of MLX's memory", peaks),
        *(_components(profile, f"A step's peak, {option}") for option, profile in whole.items()),
    ]


def _components(
    profile: Mapping[str, Any], title: str = "What a step's peak consists of"
) -> Drawing:
    held = profile["held_bytes"]
    components = {"activations, rest" if n == "rest" else n: count for n, count in held.items()}
    return _bytes_chart(title, components)


def _bytes_chart(title: str, counts: Mapping[str, int]) -> Drawing:
    scale, unit = _unit(max(counts.values()))
    # To three digits, because a bar's value is written out beside it.
    values = [float(f"{count / scale:.3g}") for count in counts.values()]
    return bar_chart(title, list(counts), [Bars("", values)], label=unit)


def _thinned(samples: Sequence[MemorySample]) -> Iterator[MemorySample]:
    """The largest of each few neighbours of a phase: no peak goes, and no phase either."""
    few = max(1, len(samples) // _MOST_POINTS)
    for _, group in groupby(samples, key=lambda sample: sample.phase):
        same = list(group)
        for start in range(0, len(same), few):
            yield max(same[start : start + few], key=lambda sample: sample.live_bytes)


def _unit(count: int) -> tuple[float, str]:
    return (2.0**30, "GiB") if count >= 2**30 else (2.0**20, "MiB")
