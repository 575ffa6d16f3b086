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

from mlx_dpo.cli.names import Name
from mlx_dpo.cli.screen.profile import compared_table, compared_verdict, profile_table, verdict
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
    from mlx_dpo.insight.memory_page import (
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
    from mlx_dpo.runs.profiling import profile as measure

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
