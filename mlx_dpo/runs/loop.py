"""The loop of a run: what happens after each step, and what a run tells while it goes."""

import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DiskError, NonFiniteError, StoppedError
from mlx_dpo.models.generate import answer
from mlx_dpo.models.limits import follow_peak
from mlx_dpo.models.parameters import named_arrays
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.records import Pairs
from mlx_dpo.runs.checkpoint import Checkpoints
from mlx_dpo.runs.folder import RunFolder
from mlx_dpo.runs.guards import Stop
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.machine import PressureWatch, Probe, StepClock, read_pressure
from mlx_dpo.training.loss import Metrics, pair_metrics
from mlx_dpo.training.self_check import Choice
from mlx_dpo.training.trainer import DPOTrainer

# Both rewards under this for a while: the policy is making every answer unlikely. Rewards are in
# units of beta * nats; at beta 0.1 this is a chosen answer e^10 (22,000) times less likely.
REWARD_FLOOR = -1.0
ANSWER_TOKENS = 64  # longest answer to a prompt that is shown
FLOOR_WINDOW = 10  # steps averaged before the floor is judged


class Hooks:
    """What a run tells while it goes; each call does nothing here. The screen overrides them."""

    def tokenizing(self, done: int, total: int) -> None:
        """`done` of `total` bytes of a preference file are read and tokenised."""

    def data_checked(self, problems: Problems) -> None:
        """The data is read; what is wrong with it, before it is refused for it."""

    def prepared(self, job: Job, folder: Path | None) -> None:
        """Data and model are read; `folder` is None in a dry run."""

    def path_chosen(self, choice: Choice) -> None:
        """How log-probs will be computed has been settled."""

    def scoring(self, done: int, total: int) -> None:
        """The reference pass has scored `done` of `total` pairs."""

    def reference_found(self, total: int) -> None:
        """The reference log-probs of all pairs were on disk."""

    def checked(self, job: Job, start: Metrics) -> None:
        """The first batch has been scored; see `training.start.check_start`."""

    def resumed(self, step: int) -> None:
        """The run goes on after `step` updates; 0 where there was no checkpoint yet."""

    def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
        """An update was made. `timing` is a row of timings.jsonl without its step."""

    def evaluated(self, step: int, metrics: Metrics) -> None:
        """The held-out pairs were scored."""

    def sampled(self, step: int, answers: Sequence[tuple[str, str]]) -> None:
        """A few held-out prompts were answered; each with its answer."""

    def stopping(self) -> None:
        """A signal came, and the batch at work is finished first. Called from the handler."""

    def warned(self, text: str) -> None:
        """Something the user should look at."""


class RewardWatch:
    """Notices when a run makes good answers unlikely along with the bad ones."""

    def __init__(self) -> None:
        self._rewards: deque[tuple[float, float]] = deque(maxlen=FLOOR_WINDOW)
        self._warned = False

    def after(self, step: int, metrics: Metrics) -> str | None:
        """A warning, once, when both rewards have been below the floor for a while."""
        self._rewards.append((metrics["chosen_reward"], metrics["rejected_reward"]))
        chosen, rejected = np.mean(self._rewards, axis=0)
        full = len(self._rewards) == FLOOR_WINDOW
        if self._warned or not full or max(chosen, rejected) >= REWARD_FLOOR:
            return None
        self._warned = True
        return (
            f"reward collapse at step {step}: over {FLOOR_WINDOW} steps the chosen reward is "
            f"{chosen:.2f} and the rejected {rejected:.2f}, both below {REWARD_FLOOR}: the policy "
            "makes good answers unlikely too. Lower --learning-rate or raise --beta"
        )


class Loop:
    """Trains to the end, writing metrics, evaluating and saving on the way.

    Args:
        job: What the run works with.
        trainer: At the step to begin with.
        folder: Where metrics and checkpoints go.
        hooks: Told what happens.
        stop: Looked at before every batch and answer.
        checkpoints: Where the state is saved.
        probe: Tells how much memory the machine has left.
    """

    def __init__(
        self,
        job: Job,
        trainer: DPOTrainer,
        folder: RunFolder,
        hooks: Hooks,
        stop: Stop,
        checkpoints: Checkpoints,
        probe: Probe = read_pressure,
    ) -> None:
        self.job = job
        self.trainer = trainer
        self.folder = folder
        self.hooks = hooks
        self.stop = stop
        self.checkpoints = checkpoints
        self.seconds = 0.0
        self.totals: Counter[str] = Counter()
        self.scores: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
        self._rewards = RewardWatch()
        self._clock = StepClock()
        self._pressure = PressureWatch(probe)
        self._skipped = 0  # in a row, up to now

    def run(self) -> None:
        """Go on to the last step, and end earlier only with everything saved.

        Raises:
            StoppedError: If a signal came, or the machine runs out of memory.
            NonFiniteError: If a loss or gradient is not finite; nothing was applied.
            DiskError: If something can't be written.
        """
        self.stop.waits = True
        self.trainer.before_batch = self.stop.check
        try:
            self._catch_up()
            while self.trainer.step < self.trainer.max_steps:
                self._clock.restart()
                try:
                    self.trainer.train(after_step=self._after_step)
                except NonFiniteError as error:
                    self._skip(error)
        except StoppedError as error:
            self._save()
            why = "" if self.stop.asked else f": {error}"
            raise StoppedError(
                f"stopped after step {self.trainer.step} of {self.trainer.max_steps}{why}; "
                f"continue with: mlx_dpo train --resume --run-dir {self.folder.path}"
            ) from None
        finally:
            self.stop.waits = False
        self.stop.message = (
            "stopped after the last step, which is saved; the finished model is written with: "
            f"mlx_dpo train --resume --run-dir {self.folder.path}"
        )

    def _catch_up(self) -> None:
        """Do what a run that was stopped after its last step had still to do about that step."""
        step = self.trainer.step - 1
        if step < 0:
            return
        rows = self.folder.last_rows("metrics.jsonl", step)
        if not any("held_out" in row for row in rows):
            self._evaluate_if_due(step)
        if not self.folder.last_rows("samples.jsonl", step):
            self._sample_if_due(step)
        limit = step + 1 - self.job.config.skip_nonfinite
        for row in self.folder.last_rows("metrics.jsonl", limit):
            self._skipped = 0 if "loss" in row else self._skipped + ("skipped" in row)

    def _after_step(self, step: int, metrics: Metrics) -> None:
        self._record(step, metrics)
        self._skipped = 0
        if (warning := self._rewards.after(step, metrics)) is not None:
            self.hooks.warned(warning)
        self._end_step(step)
        if (warning := self._pressure.look()) is not None:
            self.hooks.warned(warning)
        self._clock.restart()

    def _end_step(self, step: int) -> None:
        self._evaluate_if_due(step)
        self._sample_if_due(step)
        # After the last step too: should the finished model not be written, nothing is lost.
        if self._is_due(step, self.job.config.save_every):
            self._save()

    def _is_due(self, step: int, every: int) -> bool:
        done = step + 1
        return every > 0 and (done % every == 0 or done == self.trainer.max_steps)

    def _skip(self, error: NonFiniteError) -> None:
        """Write down what was not finite; leave the step out, or end."""
        found = diagnose(self.trainer, self.job.train)
        step, name = found["step"], f"nonfinite-{found['step']:06d}.json"
        self.folder.write_json(name, found)
        what = f"{summary(found)}; see {self.folder.path / name}"
        if found["weights"] or self._skipped >= self.job.config.skip_nonfinite:
            raise NonFiniteError(f"{error}; {what}") from None
        self._skipped += 1
        self.trainer.skip_step()
        ids = [pair["id"] for pair in found["pairs"]]
        self.folder.append("metrics.jsonl", {"step": step, "skipped": ids})
        self.hooks.warned(f"step {step} left out ({self._skipped} in a row): {what}")
        self._end_step(step)

    def _save(self) -> None:
        self.folder.flush()
        try:
            self.checkpoints.save(self.trainer, self.job.identity())
        except DiskError as error:
            raise DiskError(
                f"{error}; the checkpoints before are untouched: make room, then continue with: "
                f"mlx_dpo train --resume --run-dir {self.folder.path}"
            ) from None

    def _record(self, step: int, metrics: Metrics) -> None:
        seconds, slept = self._clock.lap()
        if slept:
            self.hooks.warned(
                f"the machine slept {slept:.0f} s during step {step}; not counted as work"
            )
        self.seconds += seconds
        per_step = self.job.config.batch_size * self.job.config.grad_accumulation
        left = len(self.job.train.examples) % per_step
        pairs = left if left and self.trainer.order.position == 0 else per_step
        sums = {
            "seconds": seconds,
            **{f"{phase}_seconds": spent for phase, spent in self.trainer.phases.seconds.items()},
            "pairs": pairs,
            **asdict(self.trainer.work),
        }
        self.totals.update(sums)
        follow_peak()
        timing = {**sums, "peak_bytes": mx.get_peak_memory()}
        timing |= {"slept_seconds": slept} if slept else {}
        self.folder.append("metrics.jsonl", {"step": step, **metrics})
        self.folder.append("timings.jsonl", {"step": step, **timing})
        self.hooks.stepped(step, metrics, timing)

    def _evaluate_if_due(self, step: int) -> None:
        if not (self.job.held_out.examples and self._is_due(step, self.job.config.eval_every)):
            return
        self.scores = self.trainer.score_pairs(self.job.held_out.examples)
        found = pair_metrics(*self.scores, beta=self.job.config.beta)
        self.folder.append("metrics.jsonl", {"step": step, "held_out": found})
        self.hooks.evaluated(step, found)

    def _sample_if_due(self, step: int) -> None:
        if not self._is_due(step, self.job.config.sample_every):
            return
        job, rows = self.job, []
        for row in job.data.shown:
            self.stop.check()
            said = answer(job.policy, job.chat, row.prompt, max_tokens=ANSWER_TOKENS)
            rows.append({"prompt": row.question, "kind": row.kind, "answer": said.text})
        if rows:
            self.folder.append("samples.jsonl", {"step": step, "answers": rows})
            self.hooks.sampled(step, [(row["prompt"], row["answer"]) for row in rows])


# --- Which pair of a step, and which of its log-probs, is not a finite
# number.


_SIDES = ("chosen", "rejected")


def diagnose(trainer: DPOTrainer, pairs: Pairs) -> dict[str, Any]:
    """Look at the pairs of the step that has just failed, one by one.

    Args:
        trainer: At the step that failed; it is left as it was.
        pairs: The training pairs.

    Returns:
        ``step``, ``learning_rate``, ``pairs`` (each with its id, its four log-probs as numbers or
        text, and the names of those that are not finite), ``weights``: names of parameters that
        are not finite (the first ten).
    """
    found: list[dict[str, Any]] = []
    for index in trainer.order.peek():
        example = [pairs.examples[index]]
        policy = np.array(trainer.score(trainer.model, example))
        reference = np.array(trainer.reference(example))
        values = {
            f"{who}_{side}": float(logprobs[row, 0])
            for who, logprobs in (("policy", policy), ("reference", reference))
            for row, side in enumerate(_SIDES)
        }
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        numbers = {name: _json(value) for name, value in values.items()}
        found.append({"id": pairs.ids[index], **numbers, "not_finite": bad})
    return {
        "step": trainer.step,
        "learning_rate": trainer.lr(),
        "pairs": found,
        "weights": _bad_weights(trainer)[:10],
    }


def summary(diagnosis: dict[str, Any]) -> str:
    """The diagnosis in a few words."""
    if diagnosis["weights"]:
        return f"the weights are not finite ({diagnosis['weights'][0]})"
    bad = [f"{name} of pair {p['id']}" for p in diagnosis["pairs"] for name in p["not_finite"]]
    if not bad:
        ids = ", ".join(str(pair["id"]) for pair in diagnosis["pairs"])
        return f"every log-prob is finite, the gradient is not (pairs {ids})"
    return f"not finite: {', '.join(bad[:4])}" + (f" and {len(bad) - 4} more" if bad[4:] else "")


def _bad_weights(trainer: DPOTrainer) -> list[str]:
    arrays = named_arrays(trainer.model.parameters())
    return [name for name, array in arrays.items() if not mx.isfinite(array).all().item()]


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)  # JSON has no spelling for NaN
