"""`mlx_dpo sweep`."""

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mlx_dpo.cli.names import Name
from mlx_dpo.cli.train import config_options
from mlx_dpo.errors import StoppedError, UsageError
from mlx_dpo.runs.config import RunConfig, resolve

_READING = """\
log-ratio: mean of log-ratio chosen minus rejected in nats, margin / beta: the margin itself
grows with beta. KL, and length in tokens: sampled answers to held-out prompts, KL on the
policy's own."""


@click.command()
@click.argument("config", required=False, type=Name(path_type=Path))
@config_options("beta", "out", "overwrite")
@click.option(
    "--beta",
    default="0.01,0.05,0.1,0.3,1.0",
    show_default=True,
    metavar="LIST",
    help="Numbers with commas between.",
)
def sweep(config: Path | None, beta: str, **options: Any) -> None:
    """Train once for each beta of a list, and set the results beside each other.

    Takes the options of `train`, with a list for --beta. --run-dir is the folder of the whole
    sweep: a run and a model for each beta, and report.html. Given again, finished runs are kept
    and a stopped one goes on. The reference is computed once.

    \b
    Example:
      mlx_dpo sweep --beta 0.01,0.05,0.1,0.3,1.0 --run-dir runs/sweep
    """
    given = {key: value for key, value in options.items() if value is not None}
    betas = _betas(beta)
    settings = resolve(config, {**given, "beta": betas[0]})
    if settings.run_dir is None:
        raise UsageError("sweep needs --run-dir: the folder of the sweep")
    if settings.eval_fraction == 0 and settings.eval_data is None:
        raise UsageError("a sweep compares on held-out pairs, and --eval-fraction 0 leaves none")
    folder = Path(settings.run_dir)
    for number, each in enumerate(betas, 1):
        one = _settings_of(settings, folder, each)
        is_done = _is_finished(one)
        kept = ": finished earlier" if is_done else ""
        click.echo(f"beta {each:g} ({number} of {len(betas)}){kept}", err=True)
        if not is_done:
            _train(one, folder)
        gc.collect()
    _show(folder, [folder / f"beta-{each:g}" for each in betas])


def _betas(text: str) -> list[float]:
    try:
        betas = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--beta: numbers with commas between, found {text!r}") from None
    if not all(0 < each < float("inf") for each in betas) or len(set(betas)) < len(betas):
        raise UsageError(f"--beta: different numbers above 0, found {text!r}")
    return betas


def _settings_of(settings: RunConfig, folder: Path, beta: float) -> RunConfig:
    place = folder / f"beta-{beta:g}"
    return replace(
        settings, beta=beta, run_dir=str(place / "run"), out=str(place / "model"), overwrite=False
    )


def _is_finished(settings: RunConfig) -> bool:
    run = Path(str(settings.run_dir))
    if not (run / "result.json").is_file():
        return False
    if resolve(run / "config.toml", {}) != settings:
        raise UsageError(f"{run}: was made with other settings; choose another --run-dir")
    return True


def _train(settings: RunConfig, folder: Path) -> None:
    from mlx_dpo.cli.screen import Screen
    from mlx_dpo.runs.run import train

    run = Path(str(settings.run_dir))
    with Screen(settings, sys.stderr.isatty()) as screen:
        try:
            train(settings, resume=(run / "config.toml").is_file(), hooks=screen)
        except StoppedError:
            raise StoppedError(
                f"stopped at beta {settings.beta:g}; the same command goes on, in {folder}"
            ) from None


def _show(folder: Path, places: list[Path]) -> None:
    from mlx_dpo.cli.figures import progress, table
    from mlx_dpo.insight.report.page import write_report
    from mlx_dpo.insight.sweep import NUM_PROMPTS, look

    with progress() as done:
        total = NUM_PROMPTS * len(places)
        found = [look(place, lambda more: done("answers", total, more)) for place in places]
    names = (
        "beta",
        "reward acc",
        "log-prob acc",
        "margin",
        "log-ratio",
        "KL/token",
        "length",
        "SFT length",
    )
    rows = [list(names)]
    for one in found:
        score, drift = one.score, one.drift
        rows.append(
            [
                *(f"{one.beta:g}", f"{score.reward_accuracy:.2f}"),
                f"{score.logprob_accuracy_before:.2f} -> {score.logprob_accuracy_after:.2f}",
                *(f"{score.margin:+.3f}", f"{score.margin / one.beta:+.2f}"),
                *(f"{drift.kl_per_token:.4f}", f"{drift.policy_length:.1f}"),
                f"{drift.reference_length:.1f}",
            ]
        )
    click.echo(f"{table(rows)}\n{_READING}")
    for one in found:
        for warning in one.warnings:
            click.echo(f"warning: beta {one.beta:g}: {warning}")
    page = write_report([place / "run" for place in places], folder / "report.html", found)
    click.echo(f"The report is {page}.")
