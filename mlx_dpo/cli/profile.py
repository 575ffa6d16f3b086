"""`mlx_dpo profile`."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from mlx_dpo.cli.options import Name
from mlx_dpo.cli.train import config_options
from mlx_dpo.errors import MlxDpoError
from mlx_dpo.runs.config import RunConfig, resolve

_PLACES = ("out", "overwrite", "run_dir", "eval_every", "save_every", "sample_every", "log_every")
# Settings to set beside each other, and the option that names each.
_COMPARED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "reference": ("reference", ("copy", "cached")),
    "checkpoint": ("checkpoint_layers", (False, True)),
    "optimizer": ("optimizer", ("adamw", "lion", "adafactor")),
    "dtype": ("dtype", ("float32", "bfloat16")),
}


@click.command()
@click.argument("config", required=False, type=Name(path_type=Path))
@config_options(*_PLACES, "allow_sleep", "skip_nonfinite", "memory_budget", "steps", "epochs")
@click.option(
    "--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Steps to measure."
)
@click.option(
    "--compare",
    type=click.Choice(list(_COMPARED)),
    help="Measure each value of this setting, in a process of its own.",
)
@click.option(
    "--out",
    multiple=True,
    type=Name(path_type=Path),
    metavar="FILE",
    help="A picture too: FILE.html (a page that opens from disk) or FILE.svg. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def profile(
    config: Path | None,
    steps: int,
    compare: str | None,
    out: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Measure where time and memory of a training run go, by phase.

    Takes the settings of `train`, runs a few steps of it (the first with the batch that needs most
    memory) and throws the result away: nothing is written but --out.

    \b
    Examples:
      mlx_dpo profile --model ~/models/my-sft --data pairs.jsonl
      mlx_dpo profile --model ~/models/my-sft --data pairs.jsonl --compare reference
    """
    from mlx_dpo.insight.report.memory import (
        check_picture,
        compared_charts,
        profile_charts,
        write_picture,
    )

    for file in out:
        check_picture(file)
    settings = resolve(config, {key: v for key, v in options.items() if v is not None})
    if compare is not None:
        rows = _compare(settings, steps, compare)
        table, last = compared_table(compare, rows), compared_verdict(rows)
        _say(rows, table, last, as_json)
        for file in out:
            write_picture(file, compared_charts(rows), table, last)
        return
    from mlx_dpo.runs.profile import profile as measure

    measured = measure(settings, steps=steps)
    found = measured.as_json()
    table, last = profile_table(found), verdict(found)
    _say(found, table, last, as_json)
    for file in out:
        write_picture(file, profile_charts(found, measured.meter.samples), table, last)


def _say(found: Mapping[str, Any], table: str, last: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo(f"{table}\n\n{textwrap.fill(last, 100)}")


def _compare(settings: RunConfig, steps: int, name: str) -> dict[str, Any]:
    """Measurements by value of a setting; an error's line where one could not be made.

    Raises:
        MlxDpoError: If none could.
    """
    key, values = _COMPARED[name]
    rows, codes = {}, []
    for value in values:
        option = _option(key, value)
        click.echo(f"measuring {option} ...", err=True)
        code, found = _in_process(replace(settings, **{key: value}), steps)
        rows[option] = found
        codes.append(code)
    if all(codes):
        error = MlxDpoError(str(next(iter(rows.values()))["error"]))
        error.exit_code = codes[0]
        raise error
    return rows


def _option(key: str, value: Any) -> str:
    name = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return name if value else f"without {name}"
    return f"{name} {value}"


def _in_process(settings: RunConfig, steps: int) -> tuple[int, dict[str, Any]]:
    """Exit code and measurement, of a process of its own: nothing another left counts for it."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "profile.toml"
        file.write_text(settings.to_toml(), encoding="utf-8")
        command = [sys.executable, "-m", "mlx_dpo", "profile", str(file), "--json"]
        done = subprocess.run(
            [*command, "--steps", str(steps)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return done.returncode, {"error": said.removeprefix("mlx_dpo: ")}
    found: dict[str, Any] = json.loads(done.stdout)
    return 0, found


# --- What `mlx_dpo profile` measured, as text.


_NOTES = """\
forward: the policy's scores alone, once more before each step; no part of a run.
backward: the gradient pass of a step, its own forward included.
"""
_NOTES_FUSED = """\
backward: the gradient pass of a step, its own forward and (--grad-clip 0) the update included.
"""


def size(count: float) -> str:
    """A number of bytes, in GiB or MiB, as wide as a column needs."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def profile_table(found: Mapping[str, Any]) -> str:
    """A row a phase, and what a step's peak consists of; `found` is `Profile.as_json`."""
    lines = [f"model     {found['model']}, {_said_of(found['settings'])}"]
    pairs = ", ".join(f"{p}+{c}/{r}" for p, c, r in found["largest_batch"])
    pairs = pairs if len(pairs) <= 46 else pairs[:43] + "..."
    lines.append(f"largest   {pairs}  (tokens of prompt + chosen/rejected)")
    lines.append(f"measured  {found['steps']} steps, {found['path']} path, on {_machine(found)}")
    lines.append("")
    lines.append(
        f"{'phase':12}{'seconds':>9}{'':3}{'peak':>11}{'live after':>13}{'cache':>12}"
        f"{'process':>12}"
    )
    for name, phase in found["phases"].items():
        lines.append(
            f"{name:12}{phase['seconds']:9.2f}{'':3}{size(phase['peak_bytes']):>11}"
            f"{size(phase['live_bytes']):>13}{size(phase['cache_bytes']):>12}"
            f"{size(phase['footprint_bytes']):>12}"
        )
    lines.append(f"{'between':12}{found['between_seconds']:9.2f}")
    peak = size(found["peak_bytes"])
    lines.append(
        f"{'whole':12}{found['seconds']:9.2f}{'':3}{peak:>11}  "
        f"plan said {size(found['predicted_peak_bytes'])}: measured / predicted "
        f"{found['measured_over_predicted']:.2f}"
    )
    lines.append(
        _NOTES.strip()
        if found["settings"]["grad_clip"]
        else _NOTES.splitlines()[0] + "\n" + _NOTES_FUSED.strip()
    )
    lines.append(f"peak, live, cache: MLX's own figures. process: {found['footprint']}.")
    lines.append("")
    step = sum(found["held_bytes"].values())
    lines.append("a step's peak")
    for name, count in found["held_bytes"].items():
        bar = "█" * round(40 * count / step)
        label = {"rest": "rest, as activations"}.get(name, name)
        lines.append(f"  {label:22}{size(count):>11}  {count / step:5.1%}  {bar}")
    return "\n".join(lines)


def _said_of(settings: Mapping[str, Any], without: str = "") -> str:
    """The settings that decide memory, but for one that is compared."""
    said = {
        "optimizer": settings["optimizer"],
        "dtype": settings["dtype"],
        "reference": f"reference {settings['reference']}",
        "batch": f"batch {settings['batch_size']} x {settings['grad_accumulation']}",
        "checkpoint": "layers checkpointed" if settings["checkpoint_layers"] else "",
        "clip": f"clip {settings['grad_clip']:g}",
    }
    return ", ".join(part for name, part in said.items() if part and name != without)


def _machine(found: Mapping[str, Any]) -> str:
    about = found["environment"]
    return f"{about['system']} {about['device']}, MLX {about['mlx']}"


def verdict(found: Mapping[str, Any]) -> str:
    """What takes most of a step's memory, and what would lower it most."""
    held = found["held_bytes"]
    most = max(held, key=lambda name: int(held[name]))
    share = held[most] / sum(held.values())
    what = {
        "weights": "The weights dominate",
        "reference": "The reference model dominates",
        "optimizer": "The optimizer's state dominates",
        "gradients": "The gradients dominate",
        "rest": "What layers keep for the gradient dominates",
    }[most]
    begin = f"{what} ({share:.0%} of a step's peak)"
    levers = found["levers_predicted_peak_bytes"]
    least = min(levers, key=lambda name: int(levers[name]), default="")
    gain = found["predicted_peak_bytes"] - levers[least] if least else 0
    if gain <= 0:
        return f"{begin}; of single settings none lowers the peak."
    return f"{begin}; {least} lowers the peak most, by {size(gain)} as predicted."


def compared_table(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each value of the setting `name`; those that failed have an ``error``."""
    lines = []
    first = next(found for found in rows.values() if "error" not in found)
    lines.append(f"model     {first['model']}, {_said_of(first['settings'], without=name)}")
    lines.append(f"measured  {first['steps']} steps of each, on {_machine(first)}")
    lines.append("")
    lines.append(
        f"{'':28}{'peak':>11}{'weights+ref':>13}{'optimizer':>12}{'rest':>11}{'s/step':>8}"
        f"{'of plan':>9}"
    )
    for option, found in rows.items():
        if "error" in found:
            lines.append(f"{option:28}  {found['error'][:70]}")
            continue
        held = found["held_bytes"]
        lines.append(
            f"{option:28}{size(found['peak_bytes']):>11}"
            f"{size(held['weights'] + held['reference']):>13}{size(held['optimizer']):>12}"
            f"{size(held['gradients'] + held['rest']):>11}{_step_seconds(found):8.2f}"
            f"{found['measured_over_predicted']:9.2f}"
        )
    lines.append("rest: gradients, activations, logits. of plan: measured / predicted peak.")
    return "\n".join(lines)


def compared_verdict(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Which value holds least."""
    whole = {o: f for o, f in rows.items() if "error" not in f}
    least = min(whole, key=lambda option: int(whole[option]["peak_bytes"]))
    saved = max(int(f["peak_bytes"]) for f in whole.values()) - int(whole[least]["peak_bytes"])
    return f"{least} holds least: {size(saved)} less than the most."


def _step_seconds(found: Mapping[str, Any]) -> float:
    """Seconds of a step as a run takes it: without the forward that was only measured."""
    phases = found["phases"]
    spent = sum(phases[n]["seconds"] for n in ("backward", "update") if n in phases)
    return float(spent / found["steps"])
