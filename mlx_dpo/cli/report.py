"""`mlx_dpo report`."""

from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.screen import say


@click.command()
@click.argument(
    "runs", nargs=-1, required=True, metavar="RUN...", type=options.Name(path_type=Path)
)
@options.path(
    "--out",
    "The page. Default: report.html in the first run's folder.",
    type=options.Name(path_type=Path, dir_okay=False),
)
def report(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write what runs did as one HTML page that opens from disk.

    Curves, accuracy by kind before and after, calibration, lengths, answers, cost, warnings and the
    command to reproduce. `train` writes it at the end of every run.

    \b
    Example:
      mlx_dpo report runs/tiny-sft-1
    """
    from mlx_dpo.insight.report.page import write_report

    say(f"written: {write_report(runs, out)}")
