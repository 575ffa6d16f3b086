"""A run on a rank that is not the first: it computes its share, and writes and shows nothing."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_dpo.models.limits import limited_memory
from mlx_dpo.runs.best import BestStep
from mlx_dpo.runs.callbacks import Evaluate, Pressure, Screen
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.group import Rejoin, compare_jobs, share_state
from mlx_dpo.runs.guards import Stop, stop_on_signal
from mlx_dpo.runs.job import prepare
from mlx_dpo.runs.machine import PressureWatch, Probe, keep_awake, read_pressure, shortage_explained
from mlx_dpo.runs.nonfinite import SkipNonFinite
from mlx_dpo.runs.plan import budget_of
from mlx_dpo.runs.run import check_start
from mlx_dpo.runs.trainer import trainer_of
from mlx_dpo.runs.watchdog import ALONE
from mlx_dpo.training.peers import Alone
from mlx_dpo.training.trainer import Callback, DPOTrainer


class Elsewhere:
    """A `Log` of what the first rank's folder held when the run began; it writes no file.

    Args:
        rows: Of its metrics.jsonl.
    """

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Nothing; the first rank writes."""

    def last_rows(self, name: str, step: int) -> list[dict[str, Any]]:
        """See `Log.last_rows`."""
        return [row for row in self._rows if row["step"] >= step]

    def write_json(self, name: str, value: Any) -> Path:
        """Nothing; the first rank writes."""
        return Path(name)


class Heeds(Callback):
    """Stops this rank, and with it all, when a signal came."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def before_batch(self, trainer: DPOTrainer) -> None:
        """See `Stop.check`."""
        self._stop.check()


def follow(
    config: RunConfig, peers: Alone, *, dry_run: bool = False, probe: Probe = read_pressure
) -> None:
    """Take part in the run that rank 0 makes with `runs.run.train`.

    Args:
        config: The settings, those of rank 0.
        peers: All ranks.
        dry_run: As there.
        probe: Reads how much memory this machine has left.

    Raises:
        MlxDpoError: One of its kinds.
    """
    mx.reset_peak_memory()
    with (
        stop_on_signal() as stop,
        nullcontext() if config.allow_sleep else keep_awake(),
        limited_memory(budget_of(config)),
        shortage_explained(config),
    ):
        job = prepare(config, keep=not dry_run)
        resumes = compare_jobs(peers, job)
        trainer = trainer_of(job, Screen(), stop, keep=False, peers=peers)
        if not dry_run:
            peers.meet(ALONE)
        if not resumes:
            check_start(job, trainer, Screen())
        if dry_run:
            return
        folder = Elsewhere(share_state(peers, trainer, []))
        evaluate = Evaluate(job, folder, Screen())
        callbacks = [
            evaluate,
            BestStep(job.config, evaluate, None, Screen()),
            SkipNonFinite(job.train, job.config.skip_nonfinite, folder, Screen()),
            Heeds(stop),
            Pressure(PressureWatch(probe), Screen()),
            Rejoin(job.config),
        ]
        with stop.deferred():
            trainer.train(callbacks=callbacks)
