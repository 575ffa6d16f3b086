"""`mlx_dpo train`."""

import sys
from collections.abc import Callable
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli.options import Name
from mlx_dpo.errors import BudgetError, MlxDpoError, UsageError
from mlx_dpo.runs.config import RunConfig, given_names, option_type, resolve
from mlx_dpo.runs.guards import check_free, stop_on_signal

if TYPE_CHECKING:
    from mlx_dpo.runs.callbacks import Screen
    from mlx_dpo.runs.data import Data


def config_options(*left_out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One option a setting, made from the dataclass: name, type, default and help stand there."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for setting in reversed(fields(RunConfig)):
            if setting.name not in left_out:
                command = _option_of(setting)(command)
        return command

    return add


def _option_of(setting: "Field[Any]") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    kind = option_type(setting.name)
    choices = setting.metadata.get("choices")
    unset = setting.default is None or kind is bool
    shown = "" if unset else f" [default: {setting.default}]"
    value: dict[str, Any] = {"type": click.Choice(choices) if choices else kind}
    if not choices:
        value["metavar"] = _metavar(setting.name, kind)
    return click.option(
        f"--{setting.name.replace('_', '-')}",
        default=None,
        help=setting.metadata["help"] + shown,
        **{"is_flag": True} if kind is bool else value,
    )


def _metavar(name: str, kind: type) -> str:
    if name == "memory_budget":
        return "SIZE"
    if kind is str:
        return "FOLDER" if name in ("model", "out", "run_dir") else "FILE"
    return "NUMBER" if kind is float else "N"


@click.command()
@click.argument("config", required=False, type=Name(path_type=Path))
@config_options()
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir.")
@click.option("--dry-run", is_flag=True, help="Check everything up to the first gradient, stop.")
@click.option(
    "--supervise", is_flag=True, help="Start again, at most 3 times, when the process crashes."
)
def train(
    config: Path | None, resume: bool, dry_run: bool, supervise: bool, **options: Any
) -> None:
    """Train a model on preference pairs with DPO.

    CONFIG is a TOML file whose keys are the option names below with underscores; an option on the
    command line beats it. Paths in it are relative to the current folder. Without CONFIG and
    --model, the embedded default of a clone is trained (checkpoints/tiny-sft/train.toml).

    \b
    Examples:
      mlx_dpo train
      mlx_dpo train --model ~/models/my-sft --data pairs.jsonl --epochs 2
      mlx_dpo train --resume --run-dir runs/my-sft-1
    """
    given = {key: value for key, value in options.items() if value is not None}
    if resume:
        run_dir = _run_to_resume(given)
        if (run_dir / "result.json").is_file():
            click.echo(f"{run_dir}: done; the run had finished, and there is nothing to continue")
            return
        config = _config_of_run(run_dir, config, given)
    settings = resolve(config, given)
    if settings.run_dir and not dry_run:
        check_free(Path(settings.run_dir))
    if supervise and not dry_run:
        sys.exit(_supervised(settings, resume))
    with stop_on_signal():  # from the first second: the imports take some
        fixed = None if _has_begun(settings) else given_names(config, given)
        _run(settings, fixed, resume=resume, dry_run=dry_run)


def _run(settings: RunConfig, fixed: set[str] | None, *, resume: bool, dry_run: bool) -> None:
    """Run, under settings that keep the budget; as they are where `fixed` is None."""
    from mlx_dpo.cli.results import show_result
    from mlx_dpo.cli.run_screen import TerminalScreen
    from mlx_dpo.runs.run import train as run

    with TerminalScreen(settings, sys.stderr.isatty()) as screen:
        data = None
        if fixed is not None:
            settings, data = _within_budget(settings, fixed, screen, keep=not dry_run)
        result = run(settings, resume=resume, dry_run=dry_run, data=data, screen=screen)
    if result is None:
        click.echo("dry run: all checks passed; nothing was trained")
    else:
        show_result(result)
        _write_report(result.folder)


def _has_begun(settings: RunConfig) -> bool:
    """Whether the run was fitted to its budget when it began; it goes on with what it has."""
    return bool(settings.run_dir) and (Path(str(settings.run_dir)) / "config.toml").is_file()


def _within_budget(
    settings: RunConfig, fixed: set[str], screen: "Screen", *, keep: bool
) -> "tuple[RunConfig, Data | None]":
    """The settings, changed where they would need more memory than they may, and the pairs read."""
    from mlx_dpo.runs.plan import as_options, budget_of, changes, fit, gigabytes, make_plan

    budget = budget_of(settings)
    if budget is None:
        return settings, None
    plan = make_plan(settings, keep=keep, progress=screen.tokenizing, problems=screen.data_checked)
    try:
        found = fit(plan, budget, fixed, keep=keep, planning=screen.planning)
    except BudgetError as error:
        if settings.memory_budget is not None:
            raise
        screen.planned(f"warning: {error}")  # nobody asked it to keep a budget
        return settings, plan.data
    changed = changes(settings, found.chosen.settings)
    outcome = (
        f"memory: {as_options(changed)}, for a peak of {gigabytes(found.chosen.total)} within "
        f"{gigabytes(budget)} (without: {gigabytes(found.asked.total)}, predicted)"
    )
    screen.planned(outcome if changed else "")
    return replace(settings, **changed), plan.data


def _supervised(settings: RunConfig, resume: bool) -> int:
    """Run this command in a child process, and from its checkpoint again where that crashes."""
    from mlx_dpo.convert.sources import name_of
    from mlx_dpo.runs.folder import new_run_dir
    from mlx_dpo.runs.supervise import supervise

    assert settings.model is not None
    run_dir = Path(settings.run_dir) if settings.run_dir else new_run_dir(name_of(settings.model))
    words = [word for word in sys.argv[1:] if word not in ("--supervise", "--resume")]

    def command(again: bool) -> list[str]:
        begin = [sys.executable, "-m", "mlx_dpo"]
        if (again or resume) and (run_dir / "config.toml").is_file():
            return [*begin, "train", "--resume", "--run-dir", str(run_dir)]
        flags = ["--resume"] if again or resume else []
        return [*begin, *words, *flags, "--run-dir", str(run_dir)]

    def warn(line: str) -> None:
        click.echo(f"warning: {line}", err=True)

    return supervise(run_dir, command, warn=warn)


def _run_to_resume(given: dict[str, Any]) -> Path:
    if "run_dir" not in given:
        raise UsageError("--resume needs --run-dir: the folder of the run to continue")
    return Path(given["run_dir"])


def _config_of_run(run_dir: Path, config: Path | None, given: dict[str, Any]) -> Path | None:
    """The settings to resume with: the run's own; before it has any, those given."""
    own = run_dir / "config.toml"
    if own.is_file():
        if config is not None:
            raise UsageError(f"{own}: the run goes on with these settings; leave {config} out")
        return own
    if config is None and "model" not in given:
        raise UsageError(f"{run_dir}: no run there to continue")
    return config


def _write_report(folder: Path) -> None:
    """The page of a finished run; a run is not lost for want of its page."""
    from mlx_dpo.insight.report.page import write_report

    try:
        click.echo(f"The report is {write_report([folder])}.")
    except MlxDpoError as error:
        click.echo(f"warning: no report: {error}", err=True)
