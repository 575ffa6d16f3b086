"""`mlx_dpo profile`: where time and memory of a run go, as text, JSON and pictures."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.plan import shown_pairs
from mlx_dpo.cli.screen import say, show_json, table
from mlx_dpo.errors import MlxDpoError
from mlx_dpo.runs.config import RunConfig, resolve

# Values of --compare: the setting, and its values to measure.
_COMPARED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "reference": ("reference", ("copy", "cached")),
    "checkpoint": ("checkpoint_layers", (False, True)),
    "optimizer": ("optimizer", ("adamw", "lion", "adafactor")),
    "dtype": ("dtype", ("float32", "bfloat16")),
}
_BAR = 16  # columns
_DOMINATES = {
    "weights": "The weights dominate",
    "adapters": "The adapters dominate",
    "reference": "The reference model dominates",
    "optimizer": "The optimizer's state dominates",
    "gradients": "The gradients dominate",
    "rest": "What layers keep for the gradient dominates",
}


@click.command()
@options.config(*options.OF_A_SAVED_RUN, "memory_budget", "steps", "epochs")
@options.count("--steps", about="Steps to measure.", default=3)
@click.option(
    "--compare",
    type=click.Choice(list(_COMPARED)),
    help="Measure each value of this setting, in a process of its own.",
)
@options.path(
    "--out",
    "A picture too: FILE.html (a page that opens from disk) or FILE.svg. May be repeated.",
    multiple=True,
    type=options.Name(path_type=Path),
)
@options.as_json
@options.keeps_awake
def profile(
    config: Path | None,
    steps: int,
    compare: str | None,
    out: tuple[Path, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Measure where time and memory of a training run go, by phase.

    Takes the settings of `train`, runs a few steps of it (the first with the batch that needs most
    memory) and throws the result away: nothing is written but --out.

    \b
    Examples:
      mlx_dpo profile --model ~/models/my-sft --data pairs.jsonl
      mlx_dpo profile --model ~/models/my-sft --data pairs.jsonl --compare reference
    """
    from mlx_dpo.insight.report import memory as memory_page

    for file in out:
        memory_page.check_picture(file)
    from mlx_dpo.runs.defaults import decided

    settings = decided(resolve(config, options.typed(given)))
    refuse_foreign(*settings.files)
    measured: dict[str, Any]
    if compare is not None:
        measured = _compare(settings, steps, compare)
        text, verdict = _compared_table(compare, measured), _compared_verdict(measured)
        charts = memory_page.compared_charts(measured) if out else []
    else:
        from mlx_dpo.runs.profile import profile as measure

        result = measure(settings, steps=steps, working=footer.doing)
        measured = result.as_json()
        text, verdict = _phase_table(measured), _verdict(measured)
        charts = memory_page.profile_charts(measured, result.meter.samples) if out else []
    if as_json:
        show_json(measured)
    else:
        say(f"{text}\n")
        say(verdict, bold=True)
    for file in out:
        memory_page.write_picture(file, charts, text, verdict)


def _compare(settings: RunConfig, steps: int, name: str) -> dict[str, Any]:
    """Measurements by value of a setting; ``{"error": line}`` for a value that failed.

    Raises:
        MlxDpoError: If all failed.
    """
    key, values = _COMPARED[name]
    rows, codes = {}, []
    for value in values:
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            option = option if value else f"without {option}"
        else:
            option = f"{option} {value}"
        footer.doing(f"measuring {option}", log=True)
        code, rows[option] = _in_process(replace(settings, **{key: value}), steps)
        codes.append(code)
    if all(codes):
        error = MlxDpoError(str(next(iter(rows.values()))["error"]))
        error.exit_code = codes[0]
        raise error
    return rows


def _in_process(settings: RunConfig, steps: int) -> tuple[int, dict[str, Any]]:
    """Exit code and measurement of a process of its own, so that no earlier memory counts."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "profile.toml"
        file.write_text(settings.to_toml(), encoding="utf-8")
        command = [sys.executable, "-m", "mlx_dpo", "profile", str(file), "--json"]
        done = subprocess.run(
            [*command, "--steps", str(steps)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return done.returncode, {"error": message.removeprefix("mlx_dpo: ")}
    measured: dict[str, Any] = json.loads(done.stdout)
    return 0, measured


def _phase_table(measured: Mapping[str, Any]) -> str:
    """A row a phase, and what a step's peak consists of; `measured` is `Profile.as_json`."""
    from mlx_dpo.runs.plan import gigabytes

    rows = [["phase", "seconds", "peak", "live after", "cache", "process"]]
    for name, phase in measured["phases"].items():
        figures = [phase[f"{key}_bytes"] for key in ("peak", "live", "cache", "footprint")]
        rows.append([name, f"{phase['seconds']:.2f}", *map(gigabytes, figures)])
    rows.append(["between", f"{measured['between_seconds']:.2f}", "", "", "", ""])
    peak = gigabytes(measured["peak_bytes"])
    rows.append(["whole", f"{measured['seconds']:.2f}", peak, "", "", ""])
    fused = "" if measured["settings"]["grad_clip"] else " and (--grad-clip 0) the update"
    held = measured["held_bytes"]
    step = sum(held.values())
    parts = [
        [
            "  " + ("rest, as activations" if name == "rest" else name),
            gigabytes(count),
            f"{count / step:.1%}",
            f" {'█' * round(_BAR * count / step):{_BAR}}",
        ]
        for name, count in held.items()
    ]
    return "\n".join(
        [
            f"model     {measured['model']}, {_memory_settings(measured['settings'])}",
            f"largest   {shown_pairs(measured['largest_batch'], 46)}",
            f"measured  {measured['steps']} steps, {measured['path']} path, on "
            + _machine(measured),
            "",
            table(rows, spare=(("cache",), ("process",))),
            f"predicted peak {gigabytes(measured['predicted_peak_bytes'])}: measured / predicted "
            f"{measured['measured_over_predicted']:.2f}",
            "forward: the policy's scores alone, once more before each step; no part of a run.",
            f"backward: the gradient pass of a step, its own forward{fused} included.",
            f"peak, live, cache: MLX's own figures. process: {measured['footprint']}.",
            "",
            "a step's peak",
            table(parts),
        ]
    )


def _memory_settings(settings: Mapping[str, Any], without: str = "") -> str:
    """The settings that decide memory, but for one that is compared."""
    rank = "" if settings["lora_rank"] is None else f" of rank {settings['lora_rank']}"
    parts = {
        "method": f"adapters{rank}" if settings["method"] == "lora" else "",
        "optimizer": settings["optimizer"],
        "dtype": settings["dtype"],
        "reference": f"reference {settings['reference']}",
        "batch": f"batch {settings['batch_size']} x {settings['grad_accumulation']}",
        "checkpoint": "layers checkpointed" if settings["checkpoint_layers"] else "",
        "clip": f"clip {settings['grad_clip']:g}",
    }
    return ", ".join(part for name, part in parts.items() if part and name != without)


def _machine(measured: Mapping[str, Any]) -> str:
    environment = measured["environment"]
    return f"{environment['system']} {environment['device']}, MLX {environment['mlx']}"


def _verdict(measured: Mapping[str, Any]) -> str:
    """What takes most of a step's memory, and which setting would lower it most."""
    from mlx_dpo.runs.plan import gigabytes

    held = measured["held_bytes"]
    most = max(held, key=lambda name: int(held[name]))
    begin = f"{_DOMINATES[most]} ({held[most] / sum(held.values()):.0%} of a step's peak)"
    levers = measured["levers_predicted_peak_bytes"]
    least = min(levers, key=lambda name: int(levers[name]), default="")
    gain = measured["predicted_peak_bytes"] - levers[least] if least else 0
    if gain <= 0:
        return f"{begin}; no single setting lowers the peak."
    return f"{begin}; {least} lowers the peak most, by {gigabytes(gain)} as predicted."


def _compared_table(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each value of the setting `name`; those that failed have an ``error``."""
    from mlx_dpo.runs.plan import gigabytes

    first = next(measured for measured in rows.values() if "error" not in measured)
    cells = [["", "peak", "weights+ref", "optimizer", "rest", "s/step", "of plan"]]
    for option, measured in rows.items():
        if "error" in measured:
            continue
        held = measured["held_bytes"]
        cells.append(
            [
                option,
                gigabytes(measured["peak_bytes"]),
                gigabytes(held["weights"] + held.get("adapters", 0) + held["reference"]),
                gigabytes(held["optimizer"]),
                gigabytes(held["gradients"] + held["rest"]),
                f"{_step_seconds(measured):.2f}",
                f"{measured['measured_over_predicted']:.2f}",
            ]
        )
    return "\n".join(
        [
            f"model     {first['model']}, {_memory_settings(first['settings'], without=name)}",
            f"measured  {first['steps']} steps of each, on {_machine(first)}",
            "",
            table(cells, spare=(("of plan",), ("optimizer",), ("rest",))),
            *(f"{o}: {m['error'][:70]}" for o, m in rows.items() if "error" in m),
            "rest: gradients, activations, logits. of plan: measured / predicted peak.",
        ]
    )


def _compared_verdict(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Which value holds least."""
    from mlx_dpo.runs.plan import gigabytes

    peaks = {option: int(m["peak_bytes"]) for option, m in rows.items() if "error" not in m}
    least = min(peaks, key=lambda option: peaks[option])
    return (
        f"{least} holds least: {gigabytes(max(peaks.values()) - peaks[least])} less than the most."
    )


def _step_seconds(measured: Mapping[str, Any]) -> float:
    """Seconds of a step as a run takes it: without the forward that was only measured."""
    phases = measured["phases"]
    spent = sum(phases[name]["seconds"] for name in ("backward", "update") if name in phases)
    return float(spent / measured["steps"])
