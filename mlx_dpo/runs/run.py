"""One run, from settings to a finished model: joins data, trainer, callbacks and files."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_dpo.errors import MlxDpoError, NonFiniteError, PeerError, StoppedError
from mlx_dpo.files import check_writable, new_file, remove_leftovers
from mlx_dpo.models.adapters import base_parameters, describe
from mlx_dpo.models.export import weight_stamps
from mlx_dpo.models.limits import limited_memory
from mlx_dpo.models.parameters import fingerprint
from mlx_dpo.preferences.scores import margins
from mlx_dpo.preferences.store import lengths
from mlx_dpo.runs.best import BestStep, Kept
from mlx_dpo.runs.callbacks import (
    Clock,
    Evaluate,
    MetricsLog,
    Pressure,
    RewardWatch,
    Sample,
    Save,
    Screen,
    shown_answers,
)
from mlx_dpo.runs.checkpoint import (
    Checkpoints,
    Newest,
    check_identity,
    check_room,
    checks_of,
    restore,
    run_needs,
)
from mlx_dpo.runs.config import BEST, RunConfig
from mlx_dpo.runs.data import Data
from mlx_dpo.runs.defaults import LORA, decided
from mlx_dpo.runs.finished import adapter_bytes, write_finished
from mlx_dpo.runs.folder import (
    REFERENCES,
    RunFolder,
    changed_environment,
    check_folders,
    check_ours,
    environment,
    given_run_dir,
    is_result_of,
    new_run_dir,
    prune_caches,
    with_its_date,
)
from mlx_dpo.runs.group import LinkWatch, Rejoin, compare_jobs, share_state
from mlx_dpo.runs.guards import Stop, keep_locked, locked, stop_on_signal
from mlx_dpo.runs.job import Job, prepare
from mlx_dpo.runs.machine import PressureWatch, Probe, keep_awake, read_pressure, shortage_explained
from mlx_dpo.runs.nonfinite import SkipNonFinite
from mlx_dpo.runs.plan import budget_of
from mlx_dpo.runs.tracker_process import check_installed
from mlx_dpo.runs.trackers import Trackers
from mlx_dpo.runs.trainer import trainer_of
from mlx_dpo.runs.verdict import BeforeAfter, Evidence, Verdict, judge, marked
from mlx_dpo.runs.watchdog import ALONE
from mlx_dpo.training.peers import Alone
from mlx_dpo.training.trainer import DPOTrainer, Scores

Look = Callable[[Job, Scores, Scores], Any]


@dataclass(frozen=True)
class RunResult:
    """The outcome of a finished run.

    Attributes:
        job: What it worked with; the policy is trained.
        folder: The run's folder.
        policy: float32 (2, N), log-probs of the held-out pairs after training.
        reference: float32 (2, N), before training.
        answers: Some prompts, answered before and after training.
        verdict: What the run has achieved.
        kept: Which step's weights it wrote.
        totals: Sums over the steps of this process: seconds by phase, pairs, tokens.
        peak_bytes: Peak of MLX's memory.
        displacement: What `train`'s `look` has found; None without.
    """

    job: Job
    folder: Path
    policy: Scores
    reference: Scores
    answers: list[BeforeAfter]
    verdict: Verdict
    kept: Kept
    totals: Mapping[str, float]
    peak_bytes: int
    displacement: Any = None


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    dry_run: bool = False,
    data: Data | None = None,
    screen: Screen | None = None,
    probe: Probe = read_pressure,
    peers: Alone | None = None,
    look: Look = lambda job, policy, reference: None,
) -> RunResult | None:
    """Run DPO from settings to a finished model.

    Args:
        config: The settings.
        resume: Go on from the newest checkpoint of ``config.run_dir``.
        dry_run: Check everything up to the first gradient, write nothing, and return.
        data: The pairs, where they have been read.
        screen: Shows what happens.
        probe: Reads how much memory the machine has left.
        peers: The processes that make the run together, of which this is the first; by default it
            is alone.
        look: Looks at the trained policy and the held-out log-probs; a dataclass that it returns
            is kept in result.json.

    Returns:
        The result; None after a dry run.

    Raises:
        MlxDpoError: One of its kinds, each with its exit code; see `mlx_dpo.errors`.
    """
    screen, peers = screen or Screen(), peers or Alone()
    check_installed(config.report_to)
    mx.reset_peak_memory()
    config = decided(with_its_date(config) if resume else config)
    check_folders(config)
    with (
        stop_on_signal(screen.stopping) as stop,
        nullcontext() if config.allow_sleep else keep_awake(),
        limited_memory(budget_of(config)),
        shortage_explained(config),
        _prepared(config, data, screen, resume=resume, dry_run=dry_run) as (job, path),
    ):
        checkpoints = None if path is None else Checkpoints(path)
        newest = checkpoints.newest_whole() if resume and checkpoints else Newest(None, [])
        if newest.path is not None:
            check_identity(newest.path, job.identity())
        compare_jobs(peers, job, resumes=newest.path is not None)
        screen.prepared(job, path)
        for problem in newest.problems:
            screen.warned(f"{problem}; going on from {newest.path}, which is whole")
        trainer = trainer_of(job, screen, stop, keep=not dry_run, peers=peers)
        keeps_best = job.config.keep == BEST
        check_room(run_needs(trainer, path or Path("runs"), job.out, keeps_best=keeps_best))
        sft_answers = [] if dry_run else _answers(job, stop, screen, "before training")
        if not dry_run:
            peers.meet(ALONE)
        if newest.path is not None:
            restore(newest.path, trainer)
        else:
            screen.working("self-check: scoring the largest batch")
            check_start(job, trainer, screen)
        if dry_run or checkpoints is None:
            return None
        folder = _open_folder(job, checkpoints.run, is_new=newest.path is None)
        if resume:
            screen.resumed(trainer.step)
            if newest.path is not None:
                checkpoints.go_on_from(newest.path)
                _warn_of_changes(folder, newest.path, screen)
        folder.cut_to(trainer.step)
        recent = trainer.step - job.config.skip_nonfinite
        share_state(peers, trainer, folder.evaluations_and_steps(recent))
        trained = _train(job, trainer, folder, screen, stop, checkpoints, probe)
        if job.config.method == LORA and weight_stamps(job.source) != job.files.weights:
            screen.warned(
                f"{job.source}: its weights were changed while the run trained: the adapter "
                "belongs to the old weights, and does not work with the new ones"
            )
        trainer.stages.peers = Alone()  # the others are done
        return _finish(job, trainer, folder, screen, stop, trained, sft_answers, look)


def _answers(job: Job, stop: Stop, screen: Screen, when: str) -> list[str]:
    screen.working(f"answering {len(job.data.shown)} prompts {when}")
    return shown_answers(job, stop)


@contextmanager
def _prepared(
    config: RunConfig, data: Data | None, screen: Screen, *, resume: bool, dry_run: bool
) -> Iterator[tuple[Job, Path | None]]:
    """Read data and model; while the block runs, the run's folder is locked.

    The folder is made and locked unless this is a dry run, where it is None if it has no name yet.
    """

    def read() -> Job:
        with shortage_explained(config, loading=True):
            return prepare(
                config,
                data=data,
                keep=not dry_run,
                working=screen.working,
                tokenizing=screen.tokenizing,
                problems=screen.data_checked,
            )

    path = given_run_dir(config, resume=resume)
    if dry_run:
        yield read(), path
    elif path is not None:
        with locked(path):  # before the data is read, which may take minutes
            check_ours(path, resume=resume)  # again: it may have begun and ended meanwhile
            job = read()
            check_writable(job.out)
            yield job, path
    else:
        job = read()
        path = new_run_dir(job.name)
        with locked(path):
            check_writable(job.out)
            yield job, path


def _open_folder(job: Job, path: Path, *, is_new: bool) -> RunFolder:
    """The run's folder, without what killed processes left half done; a new run is described."""
    folder = RunFolder(path)
    remove_leftovers(path)
    prune_caches(job.source)
    if is_new:
        folder.write_text("config.toml", job.config.to_toml())
        folder.write_json("environment.json", environment())
        folder.write_json("split.json", job.split())
        folder.write_text("lengths.json", json.dumps(lengths(job.measured).T.tolist()) + "\n")
        if job.data.log is not None:
            with new_file(path / "problems.jsonl", replace=True) as file:
                file.write(job.data.log)
    return folder


def _warn_of_changes(folder: RunFolder, checkpoint: Path, screen: Screen) -> None:
    """Warn of what a resumed run finds otherwise than it was left, and goes on with."""
    for change in changed_environment(folder.path):
        screen.warned(
            f"{change}: from here on the last bits differ from those of a run that was never "
            "stopped"
        )
    for damage in folder.damaged_lines(checks_of(checkpoint)):
        screen.warned(f"{damage}; the training is whole, the report and --keep best may be wrong")


class _Trained(NamedTuple):
    """Sums over the steps; which step was kept; its scores of the held-out pairs, where known."""

    totals: Mapping[str, float]
    kept: Kept
    scores: tuple[Scores, Scores] | None


def _train(
    job: Job,
    trainer: DPOTrainer,
    folder: RunFolder,
    screen: Screen,
    stop: Stop,
    checkpoints: Checkpoints,
    probe: Probe,
) -> "_Trained":
    """Train to the last step, and take the weights to keep; a run that is stopped is saved.

    Raises:
        StoppedError: If a signal came, or the machine runs out of memory.
        NonFiniteError: If a loss or gradient is not finite; nothing was applied.
        DiskError: If something can't be written.
    """
    log, evaluate = MetricsLog(folder, screen), Evaluate(job, folder, screen)
    best = BestStep(job.config, evaluate, checkpoints, screen)
    save = Save(job, folder, checkpoints, stop, trainer.stages.peers.size)
    callbacks = [
        log,
        RewardWatch(screen),
        evaluate,
        best,
        Sample(job, folder, screen, stop),
        SkipNonFinite(job.train, job.config.skip_nonfinite, folder, screen),
        save,
        Pressure(PressureWatch(probe), screen),
        *([LinkWatch(screen), Rejoin(job.config)] if trainer.stages.peers.size > 1 else []),
    ]
    screen.working("making the first step")
    with stop.deferred(), Trackers(job, folder.path, screen) as trackers:
        try:
            trainer.train(callbacks=[*callbacks, trackers, Clock(log)])
        except StoppedError as error:
            raise save.stopped(trainer, error) from None
        except PeerError as error:
            raise PeerError(f"{error}; {save.resume}", error.exit_code) from None
    kept = best.kept(trainer)
    is_last = kept.step == trainer.step
    return _Trained(log.totals, kept, evaluate.scores if is_last else None)


def check_start(job: Job, trainer: DPOTrainer, screen: Screen) -> None:
    """Score the first batch, and refuse to train from a start that is not as it must be.

    Raises:
        NonFiniteError: If loss or gradient are not finite.
        MlxDpoError: If the loss is not log 2, or the gradient is zero.
    """
    start = trainer.check_start()
    if not (math.isfinite(start["loss"]) and math.isfinite(start["grad_norm"])):
        raise NonFiniteError(
            f"self-check: the loss starts at {start['loss']} with gradient norm "
            f"{start['grad_norm']}: the weights of {job.config.model} are not usable"
        )
    off = max(start["largest_reward"], abs(start["loss"] - math.log(2)))
    if off > start["allowed_reward"] and job.config.adapter_reference != "base":
        raise MlxDpoError(
            f"self-check: the loss starts at {start['loss']:.6f} and not at log 2 = 0.693147 "
            f"(largest reward {start['largest_reward']:.2g}): policy and reference differ before "
            f"the first update; nothing was trained. Delete {REFERENCES} and try again"
        )
    if not start["grad_norm"] > 0:
        raise MlxDpoError("self-check: the gradient of the first pairs is zero: they teach nothing")
    screen.checked(job, start)


def _finish(
    job: Job,
    trainer: DPOTrainer,
    folder: RunFolder,
    screen: Screen,
    stop: Stop,
    trained: _Trained,
    sft_answers: list[str],
    look: Look,
) -> RunResult:
    """Score the held-out pairs, answer once more, and write checkpoint and results.

    Raises:
        MlxDpoError: If the reference or the frozen base has changed.
    """
    frozen = [] if trainer.ref_model is None else [trainer.ref_model.parameters()]
    if job.config.method == LORA:
        frozen.append(base_parameters(job.policy))
    if any(fingerprint(parameters) != job.weights_digest for parameters in frozen):
        raise MlxDpoError("the reference changed during the run: its results can't be trusted")
    policy = reference = np.zeros((2, 0), np.float32)
    if job.held_out.examples:
        # A run that stopped between its last step and here is resumed with nothing left to train.
        if trained.scores is None:
            screen.working("scoring the held-out pairs")
        policy, reference = trained.scores or trainer.score_pairs(job.held_out.examples)
    gaps = margins(policy, reference, beta=job.config.beta).tolist()
    margin_of = dict(zip(job.held_out.ids, gaps, strict=True))
    dpo_answers = _answers(job, stop, screen, "after training")
    answers = marked(job.data.shown, sft_answers, dpo_answers, margin_of)
    kept = trained.kept
    rows = [row for row in folder.last_rows("metrics.jsonl", 0) if row["step"] < kept.step]
    untaught = job.data.untaught
    evidence = Evidence(policy, reference, job.held_out, answers, rows, job.config, untaught)
    verdict = judge(evidence)
    screen.working("writing the model")
    keep_locked(folder.path)
    # A run that was killed after this finds the finished model: it appears whole or not at all.
    config = replace(job.config, run_dir=str(folder.path))
    if config.overwrite or not is_result_of(config, job.out):
        out = write_finished(job, kept, policy, reference, folder.path)
        if out != job.out:
            screen.warned(f"{job.out}: taken by another run meanwhile; the model is in {out}")
            job = replace(job, out=out)
    held_out = {
        "ids": job.held_out.ids,
        "kinds": job.held_out.kinds,
        "untaught": job.data.untaught,
        "reference": reference.tolist(),
        "policy": policy.tolist(),
    }
    folder.write_json("held_out.json", held_out)
    peak = mx.get_peak_memory()
    found = look(job, policy, reference)
    result: dict[str, object] = {
        "out": str(job.out),
        "verdict": asdict(verdict),
        "kept": asdict(kept),
        "tuned_before": job.tuned_before,
        "displacement": found and asdict(found),
        "answers": [asdict(answer) for answer in answers],
    }
    if (adapter := describe(job.policy)) is not None:
        result["adapter"] = {**asdict(adapter), "bytes": adapter_bytes(job.out)}
    folder.finish(result)
    scores, totals = (policy, reference), trained.totals
    return RunResult(job, folder.path, *scores, answers, verdict, kept, totals, peak, found)
