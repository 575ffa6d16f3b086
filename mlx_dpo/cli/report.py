"""`mlx_dpo report`."""

import time
from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.screen import page_place, program, say
from mlx_dpo.errors import UsageError


@click.command()
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN...", type=options.Name(path_type=Path)
)
@options.path(
    "--out",
    "The page. Default: report.html in the first run's folder.",
    type=options.Name(path_type=Path, dir_okay=False),
)
@click.option(
    "--live",
    is_flag=True,
    help="Write the page again while the run trains; open it, and it keeps itself up to date.",
)
def report(runs: tuple[Path, ...], out: Path | None, live: bool) -> None:
    """Write what runs did as one HTML page that opens from disk.

    Verdict, answers before and after, curves, accuracy by kind, calibration, lengths, cost,
    warnings and the command to reproduce. `train` writes it at the end of every run. With --live,
    in a second terminal, it is there from the first step on.

    \b
    Examples:
      mlx_dpo report runs/tiny-sft-1
      mlx_dpo report runs/tiny-sft-1 --live
    """
    from mlx_dpo.insight.report.live import follow
    from mlx_dpo.insight.report.page import write_report
    from mlx_dpo.runs.folder import RESULT, changed_record

    if not live:
        say(f"written: {page_place(write_report(runs, out, program=program()))}")
        for run in runs:
            if not (run / RESULT).is_file():
                say(f"warning: {run}: the run has not finished (no {RESULT})", err=True)
            for file in changed_record(run):
                say(f"warning: {file}; what the page says of it may be wrong", err=True)
    elif len(runs) > 1:
        raise UsageError("--live follows one run; without it, several stand on one page")
    else:
        page = follow(runs[0], out, wait=time.sleep, say=say, place=page_place, program=program())
        say(f"written: {page_place(page)}")
