"""`mlx_dpo train`."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.plan import within_budget
from mlx_dpo.cli.screen import page_place, program, say, show_json
from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.files import check_links
from mlx_dpo.runs.config import EMBEDDED_CONFIG, RunConfig, given_names, resolve
from mlx_dpo.runs.guards import check_free, forget_dead, stop_on_signal
from mlx_dpo.runs.tracker_process import check_installed

_OF_THE_SCREEN = ("-q", "--quiet", "-v", "--verbose", "--json")


@click.command()
@options.config()
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir.")
@click.option("--dry-run", is_flag=True, help="Check everything up to the first gradient, stop.")
@click.option(
    "--supervise", is_flag=True, help="Start again, at most 3 times, when the process crashes."
)
@options.verbose
@options.as_json
def train(
    config: Path | None,
    resume: bool,
    dry_run: bool,
    supervise: bool,
    verbose: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a model on preference pairs with DPO.

    CONFIG is a TOML or YAML file whose keys are the option names below; an option on the command
    line beats it. mlx-lm's and TRL's names are understood in both. Paths in it are relative to the
    current folder. Without CONFIG and --model, the embedded default of a clone is trained
    (checkpoints/tiny-sft/train.toml).

    \b
    Examples:
      mlx_dpo train
      mlx_dpo train --model ~/models/my-sft --data pairs.jsonl --epochs 2
      mlx_dpo train --resume --run-dir runs/my-sft-1
    """
    given = options.typed(given)
    if resume:
        run_dir = _run_to_resume(given)
        if (run_dir / "result.json").is_file():
            _refuse_other_settings(run_dir, given)
            say(f"{run_dir}: done; the run had finished, and there is nothing to continue")
            _round_off(run_dir)
            if as_json:
                show_json({"trained": False, "run": str(run_dir)})
            return
        config = _config_of_run(run_dir, config, given)
    settings = resolve(config, given)
    check_installed(settings.report_to)
    if settings.run_dir and not dry_run:
        check_free(Path(settings.run_dir))
    if supervise and not dry_run:
        sys.exit(_supervised(settings, resume))
    with stop_on_signal():  # from the first second: the imports take some
        refuse_foreign(settings.data, settings.eval_data)
        if source := config or (None if "model" in given else EMBEDDED_CONFIG):
            say(f"{'config':<10}  {source}", err=True)
            options.warn_of_unused(source)
        fixed = None if _has_begun(settings) else given_names(config, given)
        record = _run(settings, fixed, resume=resume, dry_run=dry_run, verbose=verbose)
    if as_json:
        show_json(record)


def _run(
    settings: RunConfig, fixed: set[str] | None, *, resume: bool, dry_run: bool, verbose: bool
) -> dict[str, Any]:
    """Run, under settings that keep the budget, as they are where `fixed` is None; for --json."""
    from mlx_dpo.cli.results import record_of_run, show_result
    from mlx_dpo.cli.run_screen import TerminalScreen
    from mlx_dpo.runs.defaults import decided
    from mlx_dpo.runs.run import train as run

    settings = decided(settings)
    with TerminalScreen(settings, sys.stderr.isatty(), verbose=verbose) as screen:
        data = None
        if fixed is not None:
            settings, data = within_budget(settings, fixed, screen, keep=not dry_run)
        result = run(settings, resume=resume, dry_run=dry_run, data=data, screen=screen)
    if result is None:
        say("dry run: all checks passed; nothing was trained")
        return {"trained": False}
    show_result(result, verbose=verbose)
    page = _write_report(result.folder)
    return {"trained": True, **record_of_run(result), "report": page and str(page)}


def _has_begun(settings: RunConfig) -> bool:
    """Whether the run has its settings from an earlier start, fitted to its memory budget."""
    return bool(settings.run_dir) and (Path(str(settings.run_dir)) / "config.toml").is_file()


def _supervised(settings: RunConfig, resume: bool) -> int:
    """Run this command in a child process; resume from its checkpoint after a crash."""
    from mlx_dpo.convert.sources import name_of
    from mlx_dpo.runs.folder import new_run_dir
    from mlx_dpo.runs.supervise import supervise

    assert settings.model is not None
    run_dir = Path(settings.run_dir) if settings.run_dir else new_run_dir(name_of(settings.model))
    words = [word for word in sys.argv[1:] if word != "--supervise"]
    begun = _has_begun(settings)

    def command(again: bool) -> list[str]:
        begin = [sys.executable, "-m", "mlx_dpo"]
        if again and not begun and (run_dir / "config.toml").is_file():
            kept = [word for word in words if word in _OF_THE_SCREEN]
            return [*begin, "train", "--resume", "--run-dir", str(run_dir), *kept]
        return [*begin, *words, "--run-dir", str(run_dir)]

    def warn(line: str) -> None:
        say(f"warning: {line}", err=True)

    if sys.platform == "darwin":
        # macOS ends long GPU work while the display is on; this defers it (mlx #3267).
        os.environ.setdefault("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
    footer.clear()  # the child has its own
    return supervise(run_dir, command, warn=warn)


def _run_to_resume(given: dict[str, Any]) -> Path:
    if "run_dir" not in given:
        raise UsageError("--resume needs --run-dir: the folder of the run to continue")
    run_dir = Path(given["run_dir"])
    if run_dir.is_dir():
        check_links(run_dir)
    return run_dir


def _refuse_other_settings(run_dir: Path, given: dict[str, Any]) -> None:
    """What is asked of a finished run beyond its own settings would be ignored."""
    own = run_dir / "config.toml"
    if own.is_file() and resolve(own, given) != replace(resolve(own, {}), run_dir=str(run_dir)):
        raise UsageError(
            f"{run_dir}: the run had finished, with other settings than these; they need a new "
            "--run-dir, or no --resume"
        )


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


def _round_off(run_dir: Path) -> None:
    """Do what a run that was killed after its result has left undone: its page, and its lock."""
    forget_dead(run_dir)
    if not (run_dir / "report.html").is_file():
        _write_report(run_dir)


def _write_report(folder: Path) -> Path | None:
    """The page of a finished run; a page that fails is a warning, the run stands."""
    from mlx_dpo.insight.report.page import write_report

    footer.doing("writing the report")
    try:
        page = write_report([folder], program=program())
        say(f"The report is {page_place(page)}.")
    except MlxDpoError as error:
        say(f"warning: no report: {error}", err=True)
        return None
    return page
