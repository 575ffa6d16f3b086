"""`mlx_dpo sweep`."""

import gc
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer, progress
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.plan import within_budget
from mlx_dpo.cli.screen import page_place, program, say, share, show_json, show_next, table
from mlx_dpo.errors import NonFiniteError, StoppedError, UsageError
from mlx_dpo.runs.config import RunConfig, given_names, resolve
from mlx_dpo.runs.guards import forget_dead
from mlx_dpo.runs.tracker_process import check_installed

if TYPE_CHECKING:
    from mlx_dpo.insight.sweep import BetaOutcome, FailedBeta

_READING = """\
right: pairs whose chosen answer gained more than the rejected one (the reward accuracy), with its \
95 % interval; likelier: pairs whose chosen answer is the likelier one (the log-prob accuracy), \
before -> after.
log-ratio: margin / beta, in nats: the margin itself grows with beta, as do the rewards.
KL, and length in tokens: of sampled answers to held-out prompts; SFT: length before training."""
_COLUMNS = (
    *("beta", "right", "likelier", "margin", "log-ratio", "chosen", "rejected"),
    *("KL/token", "length", "SFT"),
)
_SPARE = (
    ("chosen", "rejected"),
    ("margin",),
    ("likelier",),
    ("SFT",),
)


@click.command()
@options.config("beta", "out", "overwrite")
@click.option(
    "--beta",
    default="0.01,0.05,0.1,0.3,1.0",
    show_default=True,
    metavar="LIST",
    help="Numbers with commas between.",
)
@options.count(
    "--num-prompts",
    about="Held-out prompts that each model answers, to measure drift and length.",
    default=50,  # with 20, chance put the drift of two betas in the wrong order
)
@options.verbose
@options.as_json
@options.keeps_awake
def sweep(
    config: Path | None, beta: str, num_prompts: int, verbose: bool, as_json: bool, **given: Any
) -> None:
    """Train once for each beta of a list, and compare the results.

    Takes the options of `train`, with a list for --beta. --run-dir is the folder of the whole
    sweep: a run and a model for each beta, and report.html. The same command again keeps finished
    runs and their measurements, and resumes a stopped run. The reference is computed once, and
    settings for --memory-budget are chosen once. A beta whose loss is not finite is listed in the
    table, and the others go on.

    \b
    Example:
      mlx_dpo sweep --beta 0.01,0.05,0.1,0.3,1.0 --run-dir runs/sweep
    """
    from mlx_dpo.runs.defaults import decided

    given = options.typed(given)
    betas = _betas(beta)
    settings = resolve(config, {**given, "beta": betas[0]})
    check_installed(settings.report_to)
    refuse_foreign(*settings.files)
    if settings.run_dir is None:
        raise UsageError("sweep needs --run-dir: the folder of the sweep")
    if settings.eval_fraction == 0 and settings.eval_data is None:
        raise UsageError("a sweep compares on held-out pairs, and --eval-fraction 0 leaves none")
    folder = Path(settings.run_dir)
    settings = decided(_dated(settings, folder))
    settings = _fitted(settings, folder, given_names(config, given))
    finished, failed = _train_all(settings, folder, betas, verbose=verbose)
    if not finished:
        raise NonFiniteError(f"no beta finished: {failed[0].reason}")
    record = _show(folder, finished, failed, num_prompts)
    if as_json:
        show_json(record)
    if failed:
        raise NonFiniteError(f"{len(failed)} of {len(betas)} betas did not finish")


def _dated(settings: RunConfig, folder: Path) -> RunConfig:
    """Settings with the date of the sweep's first run, where it has one: all betas share it."""
    configs = sorted(folder.glob("beta-*/run/config.toml")) if settings.date is None else []
    return replace(settings, date=resolve(configs[0], {}).date) if configs else settings


def _fitted(settings: RunConfig, folder: Path, given: set[str]) -> RunConfig:
    """Settings within the memory budget, the same for all betas: beta changes no memory.

    The budget is solved once, before the first run of a sweep. Later runs, also those of a later
    command with the same budget, take what the first one has.
    """
    for config in sorted(folder.glob("beta-*/run/config.toml")):
        earlier = resolve(config, {})
        if earlier.memory_budget == settings.memory_budget:
            from mlx_dpo.runs.plan import changes, settings_of

            chosen = changes(settings, settings_of(earlier))
            return replace(settings, **{key: v for key, v in chosen.items() if key not in given})
    from mlx_dpo.cli.run_screen import TerminalScreen

    with TerminalScreen(settings, sys.stderr.isatty()) as screen:
        return within_budget(settings, given, screen)[0]


def _train_all(
    settings: RunConfig, folder: Path, betas: list[float], *, verbose: bool
) -> "tuple[list[Path], list[FailedBeta]]":
    from mlx_dpo.insight.sweep import FailedBeta

    finished, failed = [], []
    for number, beta in enumerate(betas, 1):
        of_beta = folder / f"beta-{beta:g}"
        run_settings = replace(
            settings,
            beta=beta,
            run_dir=str(of_beta / "run"),
            out=str(of_beta / "model"),
            overwrite=False,
        )
        is_done = _is_finished(run_settings)
        note = ": finished earlier" if is_done else ""
        say(f"beta {beta:g} ({number} of {len(betas)}){note}", err=True)
        try:
            if not is_done:
                _train(run_settings, folder, verbose=verbose)
            finished.append(of_beta)
        except NonFiniteError as error:
            say(f"warning: beta {beta:g}: {error}", err=True)
            failed.append(FailedBeta(beta, str(error)))
        gc.collect()
    return finished, failed


def _betas(text: str) -> list[float]:
    try:
        betas = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--beta: numbers with commas between, found {text!r}") from None
    if not all(0 < each < float("inf") for each in betas) or _share_a_folder(betas):
        raise UsageError(
            f"--beta: numbers above 0 that differ in their first six digits, found {text!r}"
        )
    return betas


def _share_a_folder(betas: list[float]) -> bool:
    return len({f"{beta:g}" for beta in betas}) < len(betas)


def _is_finished(settings: RunConfig) -> bool:
    run = Path(str(settings.run_dir))
    if not (run / "result.json").is_file():
        return False
    from mlx_dpo.convert.sources import find_mlx
    from mlx_dpo.insight.report.record import read_run
    from mlx_dpo.models.config import num_stored_parameters
    from mlx_dpo.runs.defaults import decided, decided_by_pairs

    num_pairs = len(read_run(run).split["train"])
    size = num_stored_parameters(find_mlx(str(settings.model)))
    made, asked = (
        decided_by_pairs(each, num_pairs, size)[0]
        for each in (decided(resolve(run / "config.toml", {})), settings)
    )
    if made != asked:
        raise UsageError(f"{run}: was made with other settings; choose another --run-dir")
    forget_dead(run)
    return True


def _train(settings: RunConfig, folder: Path, *, verbose: bool) -> None:
    from mlx_dpo.cli.run_screen import TerminalScreen
    from mlx_dpo.runs.run import train

    run = Path(str(settings.run_dir))
    with TerminalScreen(settings, sys.stderr.isatty(), verbose=verbose) as screen:
        try:
            train(settings, resume=(run / "config.toml").is_file(), screen=screen)
        except StoppedError:
            raise StoppedError(
                f"stopped at beta {settings.beta:g}; the same command continues, in {folder}"
            ) from None


def _show(
    folder: Path, finished: list[Path], failed: "list[FailedBeta]", num_prompts: int
) -> dict[str, Any]:
    """Measure and show the runs; the same for --json."""
    from mlx_dpo.insight.report.page import write_report
    from mlx_dpo.insight.sweep import advise, sweep_outcomes

    def begin(of_beta: Path, count: int) -> None:
        say(f"{of_beta.name}: answers to {count} held-out prompts", err=True)
        footer.doing(f"loading {of_beta.name}")

    with progress() as advance:
        total = num_prompts * len(finished)
        outcomes = sweep_outcomes(
            finished,
            num_prompts,
            begin=begin,
            after_prompts=lambda more: advance("answers", total, more),
        )
    footer.doing("writing the report")
    runs = [of_beta / "run" for of_beta in finished]
    page = write_report(runs, folder / "report.html", outcomes, failed, program=program())
    _print_table(outcomes, failed)
    for outcome in outcomes:
        for warning in outcome.warnings:
            say(f"warning: beta {outcome.beta:g}: {warning}")
    advice = advise(outcomes)
    say(f"\n{advice.sentence}", bold=True)
    say(f"{advice.reason}\n")
    say(f"The report is {page_place(page)}.")
    if advice.beta is not None:
        model = str(folder / f"beta-{advice.beta:g}" / "model")
        show_next(["generate", "--model", model, "--prompt", "Hello"])
    betas = [
        {key: value for key, value in asdict(each).items() if key != "is_right"}
        for each in outcomes
    ]
    return {
        "betas": betas,
        "failed": list(map(asdict, failed)),
        "advice": asdict(advice),
        "report": str(page),
    }


def _print_table(outcomes: "list[BetaOutcome]", failed: "list[FailedBeta]") -> None:
    rows = [list(_COLUMNS)]
    for outcome in outcomes:
        score, drift = outcome.score, outcome.drift
        rows.append(
            [
                *(
                    f"{outcome.beta:g}",
                    share(round(score.reward_accuracy * score.num_pairs), score.num_pairs),
                ),
                f"{score.logprob_accuracy_before:.2f} -> {score.logprob_accuracy_after:.2f}",
                *(f"{score.margin:+.3f}", f"{score.margin / outcome.beta:+.2f}"),
                *(f"{score.chosen_reward:+.3f}", f"{score.rejected_reward:+.3f}"),
                *(f"{drift.kl_per_token:.4f}", f"{drift.policy_length:.1f}"),
                f"{drift.reference_length:.1f}",
            ]
        )
    say(table(rows, spare=_SPARE))
    for failure in failed:
        say(f"{failure.beta:g}  not finite: {failure.reason}")
    say(_READING)
