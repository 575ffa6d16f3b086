"""`mlx_dpo train`."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.plan import within_budget
from mlx_dpo.cli.screen import page_place, program, say, show_json
from mlx_dpo.errors import MlxDpoError, UsageError
from mlx_dpo.paths import check_links
from mlx_dpo.runs.config import EMBEDDED_CONFIG, RunConfig, given_names, resolve
from mlx_dpo.runs.guards import check_free, forget_dead, stop_on_signal
from mlx_dpo.runs.launcher import check_shares, is_ours, is_rank
from mlx_dpo.runs.tracker_process import check_installed

if TYPE_CHECKING:
    from mlx_dpo.runs.launcher import Ranks
    from mlx_dpo.training.peers import Alone

_OF_THE_SCREEN = ("-q", "--quiet", "-v", "--verbose", "--json")


@click.command()
@options.config()
@click.option("--resume", is_flag=True, help="Continue the run in --run-dir.")
@click.option("--dry-run", is_flag=True, help="Check everything up to the first gradient, stop.")
@click.option(
    "--supervise", is_flag=True, help="Start again, at most 3 times, when the process crashes."
)
@options.count("--ranks", about="Processes on this machine that share each step.", default=1)
@options.path("--hosts", "Machines that share each step, as mlx.distributed_config lists them.")
@click.option(
    "--peer-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long ranks wait for one that does not answer.",
)
@options.verbose
@options.as_json
def train(
    config: Path | None,
    resume: bool,
    dry_run: bool,
    supervise: bool,
    ranks: int,
    hosts: str | None,
    peer_timeout: float,
    verbose: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Train a model on preference pairs with DPO.

    CONFIG is a TOML or YAML file whose keys are the option names below; an option on the command
    line overrides it. mlx-lm's and TRL's names are understood in both. Paths in it are relative to
    the current folder. Without CONFIG and --model, the embedded default of a clone is trained
    (checkpoints/tiny-sft/train.toml).

    \b
    Examples:
      mlx_dpo train
      mlx_dpo train --model ~/models/my-sft --data pairs.jsonl --epochs 2
      mlx_dpo train --resume --run-dir runs/my-sft-1
    """
    given = options.typed(given)
    shown = {"resume": resume, "dry_run": dry_run, "verbose": verbose, "as_json": as_json}
    if is_rank():
        _check_launched_once(ranks, hosts)
        _take_part(config, given, peer_timeout, **shown)
        return
    settings = _settings(config, given, resume, as_json)
    if settings is None:
        return
    if settings.run_dir and not dry_run:
        check_free(Path(settings.run_dir))
    start = _launch(ranks, hosts, settings) if ranks > 1 or hosts is not None else None
    if supervise and not dry_run:
        sys.exit(_supervised(settings, resume, start, peer_timeout))
    if start is not None:
        code = start([sys.executable, "-m", "mlx_dpo", *sys.argv[1:]]).wait()
        sys.exit(128 - code if code < 0 else code)
    with stop_on_signal():  # from the first second: the imports take some
        _run(settings, config, given, None, None, **shown)


def _settings(
    config: Path | None, given: dict[str, Any], resume: bool, as_json: bool
) -> RunConfig | None:
    """The settings of the run; None where it had finished."""
    if resume:
        run_dir = _run_to_resume(given)
        if (run_dir / "result.json").is_file():
            _refuse_other_settings(run_dir, given)
            say(f"{run_dir}: done; the run had finished, and there is nothing to continue")
            _round_off(run_dir)
            if as_json:
                show_json({"trained": False, "run": str(run_dir)})
            return None
        config = _config_of_run(run_dir, config, given)
    settings = resolve(config, given)
    check_installed(settings.report_to)
    return settings


def _check_launched_once(ranks: int, hosts: str | None) -> None:
    """Refuse ranks that were to start ranks; those of our own launcher have its words."""
    if (ranks > 1 or hosts is not None) and not is_ours():
        raise UsageError(
            "mlx.launch or mpirun has started the ranks: leave --ranks and --hosts out"
        )


def _launch(ranks: int, hosts: str | None, settings: RunConfig) -> "Callable[[list[str]], Ranks]":
    """Starts a command on each rank."""
    from mlx_dpo.runs.launcher import Ranks, local_hosts, read_hosts

    if ranks > 1 and hosts is not None:
        raise UsageError("--ranks is for this machine and --hosts for several: give one")
    found = local_hosts(ranks) if hosts is None else read_hosts(Path(hosts))
    check_shares(len(found.names), settings.batch_size * settings.grad_accumulation)
    if hosts is not None:
        say(
            "warning: what the machines send each other is neither encrypted nor authenticated: "
            "use a cable between them, or a network you trust",
            err=True,
        )

    def start(command: list[str]) -> Ranks:
        footer.clear()  # the first rank has its own
        return Ranks(found, command, lambda line: say(line, err=True))

    return start


def _take_part(
    config: Path | None, given: dict[str, Any], peer_timeout: float, **shown: bool
) -> None:
    """Be one of the ranks of a run: the first, or one that follows it."""
    with stop_on_signal():
        from mlx_dpo.runs.group import joined, same_start, settings_of_first

        footer.doing("waiting for the other ranks")
        with joined(peer_timeout) as peers:
            least = same_start(peers, config, {**given, "resume": shown["resume"] or None})
            if peers.rank:
                from mlx_dpo.runs.follower import follow

                settings = settings_of_first(peers, None)
                if settings is not None:
                    follow(settings, peers, dry_run=shown["dry_run"])
                return
            settings = _settings(config, given, shown["resume"], shown["as_json"])
            if settings is None:
                settings_of_first(peers, None)
                return
            check_shares(peers.size, settings.batch_size * settings.grad_accumulation)
            _run(settings, config, given, peers, least, **shown)


def _run(
    settings: RunConfig,
    config: Path | None,
    given: dict[str, Any],
    peers: "Alone | None",
    least: int | None,
    *,
    resume: bool,
    dry_run: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Run, under settings that keep the budget; as they are where the run has begun.

    `least` is what the smallest machine of several recommends.
    """
    refuse_foreign(*settings.files)
    if resume:
        config = _config_of_run(Path(str(settings.run_dir)), config, given)
    if source := config or (None if "model" in given else EMBEDDED_CONFIG):
        say(f"{'config':<10}  {source}", err=True)
        options.warn_of_unused(source)
    fixed = None if _has_begun(settings) else given_names(config, given)
    from mlx_dpo.cli.results import record_of_run, show_result
    from mlx_dpo.cli.run_screen import TerminalScreen
    from mlx_dpo.insight.displacement import displaced_by_run
    from mlx_dpo.runs.defaults import decided
    from mlx_dpo.runs.group import settings_of_first
    from mlx_dpo.runs.run import train as run

    settings = decided(settings)
    with TerminalScreen(settings, sys.stderr.isatty(), verbose=verbose) as screen:
        data = None
        if fixed is not None:
            settings, data = within_budget(settings, fixed, screen, keep=not dry_run, least=least)
        settings_of_first(peers, settings)
        result = run(
            settings,
            resume=resume,
            dry_run=dry_run,
            data=data,
            screen=screen,
            peers=peers,
            look=displaced_by_run,
        )
    if result is None:
        say("dry run: all checks passed; nothing was trained")
        record: dict[str, Any] = {"trained": False}
    else:
        show_result(result, verbose=verbose)
        page = _write_report(result.folder)
        record = {"trained": True, **record_of_run(result), "report": page and str(page)}
    if as_json:
        show_json(record)


def _has_begun(settings: RunConfig) -> bool:
    """Whether the run has its settings from an earlier start, fitted to its memory budget."""
    return bool(settings.run_dir) and (Path(str(settings.run_dir)) / "config.toml").is_file()


def _supervised(
    settings: RunConfig,
    resume: bool,
    start: "Callable[[list[str]], Ranks] | None",
    peer_timeout: float,
) -> int:
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
            kept += ["--peer-timeout", str(peer_timeout)] if start else []
            return [*begin, "train", "--resume", "--run-dir", str(run_dir), *kept]
        return [*begin, *words, "--run-dir", str(run_dir)]

    def warn(line: str) -> None:
        say(f"warning: {line}", err=True)

    if sys.platform == "darwin":
        # macOS ends long GPU work while the display is on; this defers it (mlx #3267).
        os.environ.setdefault("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")
    footer.clear()  # the child has its own
    return supervise(run_dir, command, warn=warn, launch=start or subprocess.Popen)


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
