"""`mlx_dpo sweep`."""

import gc
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli.options import Name
from mlx_dpo.cli.train import config_options
from mlx_dpo.errors import NonFiniteError, StoppedError, UsageError
from mlx_dpo.runs.config import RunConfig, resolve

if TYPE_CHECKING:
    from mlx_dpo.insight.sweep import BetaOutcome, FailedBeta

_READING = """\
log-ratio: mean of log-ratio chosen minus rejected in nats, margin / beta: the margin itself
grows with beta, as do the rewards. KL, and length in tokens: sampled answers to held-out
prompts, KL on the policy's own."""


_COLUMNS = (
    *("beta", "reward acc", "log-prob acc", "margin", "log-ratio", "chosen", "rejected"),
    *("KL/token", "length", "SFT length"),
)


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
@click.option(
    "--num-prompts",
    type=click.IntRange(min=1),
    # With 20, chance put the drift of two betas in the wrong order.
    default=50,
    show_default=True,
    help="Held-out prompts that each model answers, to measure drift and length.",
)
def sweep(config: Path | None, beta: str, num_prompts: int, **options: Any) -> None:
    """Train once for each beta of a list, and set the results beside each other.

    Takes the options of `train`, with a list for --beta. --run-dir is the folder of the whole
    sweep: a run and a model for each beta, and report.html. Given again, finished runs and what
    was measured of them are kept, and a stopped one goes on. The reference is computed once.
    A beta whose loss is not finite is told in the table, and the others go on.

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
    places, failed = _train_all(settings, folder, betas)
    if not places:
        raise NonFiniteError(f"no beta came to its end: {failed[0].reason}")
    _show(folder, places, failed, num_prompts)
    if failed:
        raise NonFiniteError(f"{len(failed)} of {len(betas)} betas did not come to their end")


def _train_all(
    settings: RunConfig, folder: Path, betas: list[float]
) -> "tuple[list[Path], list[FailedBeta]]":
    from mlx_dpo.insight.sweep import FailedBeta

    places, failed = [], []
    for number, each in enumerate(betas, 1):
        one = _settings_of(settings, folder, each)
        is_done = _is_finished(one)
        kept = ": finished earlier" if is_done else ""
        click.echo(f"beta {each:g} ({number} of {len(betas)}){kept}", err=True)
        try:
            if not is_done:
                _train(one, folder)
            places.append(_place(folder, each))
        except NonFiniteError as error:
            click.echo(f"beta {each:g}: {error}", err=True)
            failed.append(FailedBeta(each, str(error)))
        gc.collect()
    return places, failed


def _betas(text: str) -> list[float]:
    try:
        betas = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--beta: numbers with commas between, found {text!r}") from None
    if not all(0 < each < float("inf") for each in betas) or len(set(betas)) < len(betas):
        raise UsageError(f"--beta: different numbers above 0, found {text!r}")
    return betas


def _place(folder: Path, beta: float) -> Path:
    return folder / f"beta-{beta:g}"


def _settings_of(settings: RunConfig, folder: Path, beta: float) -> RunConfig:
    place = _place(folder, beta)
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
    from mlx_dpo.cli.run_screen import TerminalScreen
    from mlx_dpo.runs.run import train

    run = Path(str(settings.run_dir))
    with TerminalScreen(settings, sys.stderr.isatty()) as screen:
        try:
            train(settings, resume=(run / "config.toml").is_file(), screen=screen)
        except StoppedError:
            raise StoppedError(
                f"stopped at beta {settings.beta:g}; the same command goes on, in {folder}"
            ) from None


def _show(folder: Path, places: list[Path], failed: "list[FailedBeta]", num_prompts: int) -> None:
    from mlx_dpo.cli.screen import progress
    from mlx_dpo.insight.report.page import write_report
    from mlx_dpo.insight.sweep import sweep_outcomes

    def begin(place: Path, count: int) -> None:
        click.echo(f"{place.name}: answers to {count} held-out prompts", err=True)

    with progress() as done:
        total = num_prompts * len(places)
        found = sweep_outcomes(
            places,
            num_prompts,
            begin=begin,
            after_prompts=lambda more: done("answers", total, more),
        )
    _print_table(found, failed)
    for one in found:
        for warning in one.warnings:
            click.echo(f"warning: beta {one.beta:g}: {warning}")
    runs = [place / "run" for place in places]
    click.echo(f"The report is {write_report(runs, folder / 'report.html', found, failed)}.")


def _print_table(found: "list[BetaOutcome]", failed: "list[FailedBeta]") -> None:
    from mlx_dpo.cli.screen import table

    rows = [list(_COLUMNS)]
    for one in found:
        score, drift = one.score, one.drift
        rows.append(
            [
                *(f"{one.beta:g}", f"{score.reward_accuracy:.2f}"),
                f"{score.logprob_accuracy_before:.2f} -> {score.logprob_accuracy_after:.2f}",
                *(f"{score.margin:+.3f}", f"{score.margin / one.beta:+.2f}"),
                *(f"{score.chosen_reward:+.3f}", f"{score.rejected_reward:+.3f}"),
                *(f"{drift.kl_per_token:.4f}", f"{drift.policy_length:.1f}"),
                f"{drift.reference_length:.1f}",
            ]
        )
    click.echo(table(rows))
    for failure in failed:
        click.echo(f"{failure.beta:g}  not finite: {failure.reason}")
    click.echo(_READING)
