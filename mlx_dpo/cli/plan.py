"""`mlx_dpo plan`."""

import json
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli.options import Name
from mlx_dpo.cli.train import config_options
from mlx_dpo.runs.config import RunConfig, given_names, resolve

if TYPE_CHECKING:
    from mlx_dpo.memory.predict import Prediction
    from mlx_dpo.runs.profile import Calibration

_PLACES = ("out", "overwrite", "run_dir", "eval_every", "save_every", "sample_every", "log_every")


@click.command()
@click.argument("config", required=False, type=Name(path_type=Path))
@config_options(*_PLACES, "allow_sleep", "skip_nonfinite")
@click.option(
    "--calibrate", is_flag=True, help="Load the model and run a few steps: how long is an epoch?"
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def plan(config: Path | None, calibrate: bool, as_json: bool, **options: Any) -> None:
    """Say what memory a training run will need, before it.

    Takes the settings of `train`, the lengths of the data and the shapes of the model, and reads no
    weights: the code that trains is traced, and what it would hold is counted. The figure is that
    of mx.get_peak_memory(). With --memory-budget, settings that were not given are chosen so that
    the run fits, in this order: cached reference, smaller batches that add up to the same step,
    layer checkpointing, bfloat16, Adafactor. Exit code 4 where nothing fits. With --calibrate, a
    few steps under those settings are run and thrown away.

    \b
    Examples:
      mlx_dpo plan --model ~/models/my-sft --data pairs.jsonl
      mlx_dpo plan --model ~/models/my-sft --data pairs.jsonl --memory-budget 4GB
    """
    from mlx_dpo.runs.config import parse_size
    from mlx_dpo.runs.plan import changes, fit, make_plan

    given = {key: value for key, value in options.items() if value is not None}
    settings = resolve(config, given)
    made = make_plan(settings)
    chosen, budget = None, None
    if settings.memory_budget is not None:
        budget = parse_size(settings.memory_budget)
        assert budget is not None
        chosen = fit(made, budget, given_names(config, given)).chosen
    times = None
    if calibrate:
        from mlx_dpo.runs.profile import calibrate as measure

        changed = {} if chosen is None else changes(settings, chosen.settings)
        times = measure(replace(settings, **changed, memory_budget=None))
    if as_json:
        found = _as_json(made.prediction, budget, chosen)
        found["calibration"] = None if times is None else asdict(times)
        click.echo(json.dumps(found, indent=2))
        return
    _show(settings, made.prediction)
    if budget is not None and chosen is not None:
        _show_chosen(settings, budget, chosen)
    if times is not None:
        _show_times(times)


def _show(settings: RunConfig, found: "Prediction") -> None:
    from mlx_dpo.memory.solve import SHARE, machines
    from mlx_dpo.models.limits import CACHE_SHARE
    from mlx_dpo.runs.plan import gigabytes

    click.echo(f"model      {settings.model}  ({found.num_parameters / 1e6:.1f} M parameters)")
    pairs = ", ".join(f"{p}+{c}/{r}" for p, c, r in found.pairs)
    click.echo(f"data       {settings.data}")
    click.echo(f"largest    {_shortened(pairs)}  (tokens of prompt + chosen/rejected)")
    click.echo(f"path       {found.path}")
    click.echo()
    for name, count in found.parts.items():
        note = f"  {found.settings.reference}" if name == "reference" else ""
        click.echo(f"{name:16} {gigabytes(count):>10}{note}")
    click.echo(
        f"{'peak':16} {gigabytes(found.total):>10}  as mx.get_peak_memory(), in {found.moment}"
    )
    click.echo(
        f"{'buffer cache':16} {'':>10}  beside: {CACHE_SHARE:.1%} of the GPU's share, at most"
    )
    click.echo()
    click.echo("machine    for the GPU")
    for machine in machines():
        share = gigabytes(machine.recommended)
        click.echo(f"{machine.name:>8}   {share:>11}  {machine.verdict(found.total)}")
    click.echo(
        f"(fits: within {SHARE:.0%} of it. The share is what macOS recommends by public logs, not "
        "measured here)"
    )


def _show_chosen(settings: RunConfig, budget: int, chosen: "Prediction") -> None:
    from mlx_dpo.runs.plan import as_options, changes, gigabytes

    found = changes(settings, chosen.settings)
    click.echo()
    if not found:
        click.echo(f"budget     {gigabytes(budget)}: fits as it is")
        return
    click.echo(
        f"budget     {gigabytes(budget)}: {gigabytes(chosen.total)} with {as_options(found)}"
    )
    for name in found:
        click.echo(f"           {_WHY[name]}")


def _show_times(times: "Calibration") -> None:
    scoring = ""
    if times.reference_seconds:
        scoring = f"; before the first, {_clock(times.reference_seconds)} for the reference"
    click.echo()
    click.echo(
        f"an epoch   about {_clock(times.epoch_seconds)}: {times.steps_per_epoch} steps of "
        f"{times.step_seconds:.2g} s{scoring}"
    )
    click.echo(
        f"           from {times.steps} steps run here just now; evaluation, answers and "
        "saves come on top"
    )


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


_WHY = {
    "reference": "reference scored once by the untrained policy: one model less, no time",
    "batch_size": "smaller batches: the same step, a little slower, a second gradient is held",
    "grad_accumulation": "batches that add up to the same step",
    "checkpoint_layers": "layers computed again for the gradient: up to a third more time",
    "dtype": "half the bytes a number; updates are rounded up or down by chance",
    "optimizer": "next to no optimizer state; another trajectory than AdamW's",
}


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _as_json(
    found: "Prediction", budget: int | None, chosen: "Prediction | None"
) -> dict[str, Any]:
    from mlx_dpo.memory.solve import machines

    return {
        **_prediction(found),
        "machines": [{**asdict(m), "verdict": m.verdict(found.total)} for m in machines()],
        "budget": budget,
        "chosen": None if chosen is None else _prediction(chosen),
    }


def _prediction(found: "Prediction") -> dict[str, Any]:
    return {
        "peak_bytes": found.total,
        "parts": found.parts,
        "moment": found.moment,
        "path": found.path,
        "pairs": found.pairs,
        "settings": asdict(found.settings),
    }
