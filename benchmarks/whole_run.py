"""Where the CPU seconds of a whole run go: ``python -m benchmarks.whole_run --model FOLDER``.

One epoch of the embedded pairs, evaluated every ten steps, by what the run says that it is doing.
It prints, and writes its section of docs/benchmarks.md if asked. The run goes into a folder that is
deleted.
"""

import os
import tempfile
from pathlib import Path

import click
import mlx.core as mx

from benchmarks.measure import now, seconds_unit
from benchmarks.report import publish, table
from benchmarks.workload import machine
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.config import EMBEDDED_DATA, RunConfig
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.run import train
from mlx_dpo.training.loss import Metrics

ROOT = Path(__file__).resolve().parent.parent
EVERY = 10  # steps between evaluations
LOADING, CHECKS, REFERENCE = "loading", "self-checks", "reference pass"
TRAINING, EVALUATION, ANSWERS = "training", "evaluation", "answers"
WRITING = "writing"
PHASES = (TRAINING, REFERENCE, EVALUATION, ANSWERS, CHECKS, LOADING, WRITING)
# What `Screen.working` is called with, by how it begins.
_WORKING = {
    "choosing": CHECKS,
    "self-check": CHECKS,
    "answering": ANSWERS,
    "scoring the held-out": EVALUATION,
    "making the first step": TRAINING,
    "writing": WRITING,
}


class Stopwatch(Screen):
    """Sums the seconds of a run by phase; a phase lasts until the next report.

    Attributes:
        seconds: By phase, the names in `PHASES`.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = LOADING, now()

    def enter(self, phase: str) -> None:
        """The phase before ends, and this one begins."""
        moment = now()
        self.seconds[self._phase] += moment - self._since
        self._phase, self._since = phase, moment

    def working(self, what: str) -> None:
        """A phase begins that the run names."""
        self.enter(next((p for word, p in _WORKING.items() if what.startswith(word)), LOADING))

    def path_chosen(self, choice: object) -> None:
        """What follows is the reference pass, or finding it."""
        self.enter(REFERENCE)

    def checked(self, job: Job, start: Metrics) -> None:
        """The self-check is done."""
        self.enter(TRAINING)

    def evaluated(self, step: int, metrics: Metrics) -> None:
        """Training goes on."""
        self.enter(TRAINING)

    def sampled(self, step: int, answers: object) -> None:
        """Training goes on."""
        self.enter(TRAINING)


def measured(model: str, method: str) -> dict[str, float]:
    """Seconds of a run by phase."""
    mx.clear_cache()
    watch, here = Stopwatch(), Path.cwd()
    config = RunConfig(
        model=model,
        data=str(ROOT / EMBEDDED_DATA),
        method=method,
        epochs=1,
        warmup_steps=10,
        eval_every=EVERY,
        out="out",
        run_dir="run",
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            train(config, screen=watch)
        finally:
            os.chdir(here)
    watch.enter(LOADING)
    return watch.seconds


def rows_of(seconds: dict[str, dict[str, float]]) -> list[list[str]]:
    """Cells of the table: a row for each phase and two sums, a column for each method."""
    sums = {
        "all but training": {m: sum(s.values()) - s[TRAINING] for m, s in seconds.items()},
        "all": {m: sum(s.values()) for m, s in seconds.items()},
    }
    rows = [[phase, *(f"{s[phase]:.1f}" for s in seconds.values())] for phase in PHASES]
    return rows + [[name, *(f"{s:.1f}" for s in each.values())] for name, each in sums.items()]


def section(model: str, seconds: dict[str, dict[str, float]]) -> str:
    """Markdown of a model's runs by method."""
    options = "".join(f" --method {method}" for method in seconds)
    return "\n\n".join(
        [
            "### A whole run",
            f"`python -m benchmarks.whole_run --model {model}{options}`; {machine()}. One epoch of "
            f"the embedded pairs, evaluated every {EVERY} steps and at the end, a few prompts "
            f"answered before and after; {seconds_unit()}.",
            table(["phase", *seconds], rows_of(seconds)),
        ]
    )


@click.command()
@click.option("--model", required=True, help="Folder of a model.")
@click.option("--method", "methods", multiple=True, default=("lora", "full"), show_default=True)
@click.option("--write", is_flag=True, help="Write the section of docs/benchmarks.md.")
def main(model: str, methods: tuple[str, ...], write: bool) -> None:
    """Measure a run by phase."""
    folder = Path(model).resolve()
    body = section(folder.name, {method: measured(str(folder), method) for method in methods})
    click.echo(body)
    if write:
        publish("whole run", body)


if __name__ == "__main__":
    main()
