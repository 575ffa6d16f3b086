"""Callbacks of a run (record, evaluate, sample, save, watch), and the screen they report to.

For the moments of a callback see `training.trainer.Callback`. What is due after a step is also due
after a step that was left out.
"""

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlx_dpo.errors import DiskError, StoppedError
from mlx_dpo.models.generate import Request, complete
from mlx_dpo.models.limits import follow_peak
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.preferences.scores import is_taught
from mlx_dpo.runs.checkpoint import Checkpoints
from mlx_dpo.runs.collapse import FLOOR_WINDOW, reward_signs
from mlx_dpo.runs.folder import RunFolder
from mlx_dpo.runs.guards import Stop, keep_locked
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.machine import PressureWatch, StepClock
from mlx_dpo.training.loss import Metrics, pair_metrics
from mlx_dpo.training.self_check import Choice
from mlx_dpo.training.trainer import Callback, DPOTrainer, Scores

ANSWER_TOKENS = 64  # longest answer to a prompt that is shown


class Screen:
    """Receives what a run reports. Each method does nothing here; the command line shows it."""

    def working(self, what: str) -> None:
        """`what` begins now, a phase that may take seconds; it lasts until the next report."""

    def tokenizing(self, done: int, total: int) -> None:
        """`done` of `total` bytes of a preference file are read and tokenized."""

    def data_checked(self, problems: Problems) -> None:
        """The data is read; called before the run is refused for its problems."""

    def planning(self) -> None:
        """Settings are being fitted to a memory budget, which takes some seconds."""

    def planned(self, outcome: str) -> None:
        """What they were fitted to; empty where they stay as they are."""

    def prepared(self, job: Job, folder: Path | None) -> None:
        """Data and model are read; `folder` is None in a dry run without --run-dir."""

    def path_chosen(self, choice: Choice) -> None:
        """How log-probs will be computed."""

    def scoring(self, done: int, total: int) -> None:
        """The reference pass has scored `done` of `total` pairs."""

    def reference_found(self, total: int) -> None:
        """The reference log-probs of all pairs were on disk."""

    def checked(self, job: Job, start: Metrics) -> None:
        """The first batch has been scored; see `DPOTrainer.check_start`."""

    def resumed(self, step: int) -> None:
        """The run continues after `step` updates; 0 where there was no checkpoint yet."""

    def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
        """An update was made. `timing` is a row of timings.jsonl without its step."""

    def evaluated(self, step: int, metrics: Metrics) -> None:
        """The held-out pairs were scored."""

    def sampled(self, step: int, answers: Sequence[tuple[str, str]]) -> None:
        """A few held-out prompts were answered; each with its answer."""

    def tracked(self, text: str) -> None:
        """Where a tracker shows the run, or what of it the tracker lacks in the end."""

    def ended_early(self, text: str) -> None:
        """No step follows the present one; `text` says why."""

    def stopping(self) -> None:
        """A signal came, and the current batch is finished first; called in the handler."""

    def warned(self, text: str) -> None:
        """Show a warning."""


class Log(Protocol):
    """What every rank keeps of a run's folder, which lies on the first rank's machine."""

    def append(self, name: str, row: dict[str, Any]) -> None:
        """Add a line to a .jsonl file."""

    def last_rows(self, name: str, step: int) -> list[dict[str, Any]]:
        """The rows of a .jsonl file from `step` on."""

    def write_json(self, name: str, value: Any) -> Path:
        """Write a file; returns where."""


def is_due(trainer: DPOTrainer, step: int, every: int) -> bool:
    """Whether something done every so many steps (0: never) is due; the last step counts."""
    return every > 0 and ((step + 1) % every == 0 or trainer.is_done)


class MetricsLog(Callback):
    """Writes the metrics and timings of each step.

    Attributes:
        totals: Sums over the steps of this process: ``seconds``, seconds by phase, ``pairs``,
            tokens.
    """

    def __init__(self, folder: RunFolder, screen: Screen) -> None:
        self.totals: Counter[str] = Counter()
        self._folder, self._screen = folder, screen
        self._clock = StepClock()

    def restart_clock(self) -> None:
        """Count the seconds of the next step from now."""
        self._clock.restart()

    def at_start(self, trainer: DPOTrainer) -> None:
        """Count from the first step."""
        self._clock.restart()

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Append to metrics.jsonl, which the seed determines, and to timings.jsonl."""
        if metrics is None:
            return
        seconds, slept = self._clock.lap()
        if slept:
            self._screen.warned(
                f"the machine slept {slept:.0f} s during step {step}; not counted as work"
            )
        stages = trainer.stages
        sums = {
            "seconds": seconds,
            **{f"{phase}_seconds": spent for phase, spent in stages.phases.seconds.items()},
            "pairs": stages.num_pairs,
            **asdict(stages.work),
        }
        self.totals.update(sums)
        follow_peak()
        timing = {**sums, "peak_bytes": mx.get_peak_memory(), "ended": round(time.time())}
        timing |= {"slept_seconds": slept} if slept else {}
        self._folder.append("metrics.jsonl", {"step": step, **metrics})
        self._folder.append("timings.jsonl", {"step": step, **timing})
        self._screen.stepped(step, metrics, timing)


class Clock(Callback):
    """Restarts the clock, as the last callback: the others' time is not the next step's."""

    def __init__(self, log: MetricsLog) -> None:
        self._log = log

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """The next step begins now."""
        self._log.restart_clock()


class RewardWatch(Callback):
    """Warns once if chosen answers become unlikely along with the rejected ones."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._rows: deque[dict[str, float]] = deque(maxlen=FLOOR_WINDOW)
        self._warned = False

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Warn, if `reward_signs` says so of the last steps."""
        if metrics is None or self._warned:
            return
        self._rows.append({"step": step, **metrics})
        for sign in reward_signs(list(self._rows)):
            self._screen.warned(f"{sign}. Training goes on; --patience would end it")
            self._warned = True


class Evaluate(Callback):
    """Scores the held-out pairs every `eval_every` steps.

    Attributes:
        scores: Of the last evaluation: log-probs of policy and reference, each float32 (2, N).
        history: Each evaluation of the run: its step, counted from 0, and the metrics of the pairs
            whose kind is trained on.
    """

    def __init__(self, job: Job, folder: Log, screen: Screen) -> None:
        self.scores: tuple[Scores, Scores] | None = None
        self.history: list[tuple[int, Metrics]] = []
        self._job, self._folder, self._screen = job, folder, screen

    def at_start(self, trainer: DPOTrainer) -> None:
        """Evaluate, if the run was stopped before the evaluation that followed its last step."""
        if not trainer.step:
            return
        rows = self._folder.last_rows("metrics.jsonl", 0)
        self.history = [(row["step"], row["held_out"]) for row in rows if "held_out" in row]
        if not self.history or self.history[-1][0] < trainer.step - 1:
            self.after_step(trainer, trainer.step - 1, None)

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Score, if it is due."""
        job = self._job
        if not (job.held_out.examples and is_due(trainer, step, job.config.eval_every)):
            return
        self._screen.working("scoring the held-out pairs")
        self.scores = trainer.score_pairs(job.held_out.examples)
        is_judged = is_taught(job.held_out.kinds, job.data.untaught)
        judged = (side[:, is_judged] for side in self.scores)
        held_out = pair_metrics(*judged, beta=job.config.beta)
        self.history.append((step, held_out))
        self._folder.append("metrics.jsonl", {"step": step, "held_out": held_out})
        self._screen.evaluated(step, held_out)


class Sample(Callback):
    """Answers a few held-out prompts every `sample_every` steps."""

    def __init__(self, job: Job, folder: RunFolder, screen: Screen, stop: Stop) -> None:
        self._job, self._folder, self._screen, self._stop = job, folder, screen, stop

    def at_start(self, trainer: DPOTrainer) -> None:
        """Answer, if the run was stopped before the answers that followed its last step."""
        step = trainer.step - 1
        if trainer.step and not self._folder.last_rows("samples.jsonl", step):
            self.after_step(trainer, step, None)

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Answer, if it is due."""
        shown = self._job.data.shown
        if not is_due(trainer, step, self._job.config.sample_every) or not shown:
            return
        self._screen.working(f"answering {len(shown)} prompts")
        rows = [
            {"prompt": row.question, "kind": row.kind, "answer": text}
            for row, text in zip(shown, shown_answers(self._job, self._stop), strict=True)
        ]
        self._folder.append("samples.jsonl", {"step": step, "answers": rows})
        self._screen.sampled(step, [(row["prompt"], row["answer"]) for row in rows])


def shown_answers(job: Job, stop: Stop) -> list[str]:
    """The policy's present answers to the prompts that are shown.

    Raises:
        StoppedError: If a signal came.
    """
    answers = complete(
        *(job.policy, job.chat, [Request(ids) for ids in job.shown_prompts]),
        max_tokens=ANSWER_TOKENS,
        batched=len(job.data.shown) > 1 and job.answers_together,
        after_token=stop.check,
    )
    return [answer.text for answer in answers]


class Save(Callback):
    """Saves the state every `save_every` steps, and when the run is stopped.

    Args:
        job: What the run works with.
        folder: Of the run.
        checkpoints: Those of the run.
        stop: What a signal asks for.
        ranks: The processes that make the run together.
    """

    def __init__(
        self, job: Job, folder: RunFolder, checkpoints: Checkpoints, stop: Stop, ranks: int = 1
    ) -> None:
        self._job, self._folder, self._checkpoints = job, folder, checkpoints
        self._stop = stop
        again = " (and --hosts or --ranks, as before)" if ranks > 1 else ""
        self._resume = f"mlx_dpo train --resume --run-dir {folder.path}{again}"
        self.resume = f"what was saved is whole; continue with: {self._resume}"

    def before_batch(self, trainer: DPOTrainer) -> None:
        """Stop, if a signal came."""
        self._stop.check()

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Save, if it is due; after the last step too, in case the export fails."""
        is_best = self._checkpoints.best == trainer.step
        if is_best or is_due(trainer, step, self._job.config.save_every):
            self._save(trainer)

    def at_end(self, trainer: DPOTrainer) -> None:
        """From now on, a stop says how to write the finished model."""
        self._stop.message = (
            "stopped after the last step, which is saved; the finished model is written with: "
            f"{self._resume}"
        )

    def stopped(self, trainer: DPOTrainer, error: StoppedError) -> StoppedError:
        """Save the state of a run that was stopped; returns the error that says how to resume.

        Raises:
            DiskError: If it can't be written.
        """
        self._save(trainer)
        reason = "" if self._stop.requested else f": {error}"
        return StoppedError(
            f"stopped after step {trainer.step} of {trainer.max_steps}{reason}; "
            f"continue with: {self._resume}"
        )

    def _save(self, trainer: DPOTrainer) -> None:
        keep_locked(self._folder.path)
        self._folder.flush()
        try:
            self._checkpoints.save(trainer, self._job.identity(), self._folder.checks())
        except DiskError as error:
            raise DiskError(
                f"{error}; the checkpoints before are untouched: make room, then continue with: "
                f"{self._resume}"
            ) from None


class Pressure(Callback):
    """Warns when the machine's memory gets short, and stops the run before it is full."""

    def __init__(self, watch: PressureWatch, screen: Screen) -> None:
        self._watch, self._screen = watch, screen

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Check; raises StoppedError if hardly any memory is left."""
        if (warning := self._watch.look()) is not None:
            self._screen.warned(warning)
