"""The loop of a run: what happens after each step, and what a run tells while it goes."""

import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import DiskError, StoppedError
from mlx_dpo.preferences.problems import Problems
from mlx_dpo.runs.answers import answer
from mlx_dpo.runs.folder import RunFolder
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.keeping.checkpoint import Checkpoints
from mlx_dpo.training.metrics import Metrics, pair_metrics
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
        """The first batch has been scored; see `DPOTrainer.check_start`."""

    def resumed(self, step: int) -> None:
        """The run goes on after `step` updates; 0 where there was no checkpoint yet."""

    def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
        """An update was made. `timing` is a row of timings.jsonl without its step."""

    def evaluated(self, step: int, metrics: Metrics) -> None:
        """The held-out pairs were scored."""

    def sampled(self, step: int, answers: Sequence[tuple[str, str]]) -> None:
        """A few held-out prompts were answered; each with its answer."""

    def warned(self, text: str) -> None:
        """Something the user should look at."""


class Stop:
    """Whether a signal asked the run to end."""

    asked = False

    def check(self) -> None:
        """Leave now, before there is anything to save.

        Raises:
            StoppedError: If a signal came.
        """
        if self.asked:
            raise StoppedError("stopped before the first step; nothing is lost, start it again")


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask the loop to save and end; a second one leaves at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        for each in old:
            signal.signal(each, signal.default_int_handler)

    try:
        for number in old:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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
        stop: Looked at after every step.
        checkpoints: Where the state is saved.
    """

    def __init__(
        self,
        job: Job,
        trainer: DPOTrainer,
        folder: RunFolder,
        hooks: Hooks,
        stop: Stop,
        checkpoints: Checkpoints,
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
        self._clock = 0.0

    def run(self) -> None:
        """Go on to the last step.

        Raises:
            StoppedError: If a signal came; everything is saved.
            NonFiniteError: If a loss or gradient is not finite; nothing was applied.
        """
        self._clock = time.perf_counter()
        self.trainer.train(after_step=self._after_step)

    def _after_step(self, step: int, metrics: Metrics) -> None:
        self._record(step, metrics)
        if (warning := self._rewards.after(step, metrics)) is not None:
            self.hooks.warned(warning)
        config, done = self.job.config, step + 1
        last = done == self.trainer.max_steps
        if self.job.held_out.examples and (done % config.eval_every == 0 or last):
            self._evaluate(step)
        if config.sample_every and (done % config.sample_every == 0 or last):
            self._sample(step)
        stopping = self.stop.asked and not last
        # The last step too: should the finished model not be written, nothing is lost.
        if stopping or last or done % config.save_every == 0:
            self._save()
        if stopping:
            raise StoppedError(
                f"stopped after step {done} of {self.trainer.max_steps}; continue with: "
                f"mlx_dpo train --resume --run-dir {self.folder.path}"
            )
        self._clock = time.perf_counter()

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
        seconds = time.perf_counter() - self._clock
        self.seconds += seconds
        per_step = self.job.config.batch_size * self.job.config.grad_accumulation
        left = len(self.job.train.examples) % per_step
        pairs = left if left and self.trainer.order.position == 0 else per_step
        sums = {
            "seconds": seconds,
            **{f"{phase}_seconds": spent for phase, spent in self.trainer.seconds.items()},
            "pairs": pairs,
            **asdict(self.trainer.work),
        }
        self.totals.update(sums)
        timing = {**sums, "peak_bytes": mx.get_peak_memory()}
        self.folder.append("metrics.jsonl", {"step": step, **metrics})
        self.folder.append("timings.jsonl", {"step": step, **timing})
        self.hooks.stepped(step, metrics, timing)

    def _evaluate(self, step: int) -> None:
        self.scores = self.trainer.score_pairs(self.job.held_out.examples)
        found = pair_metrics(*self.scores, beta=self.job.config.beta)
        self.folder.append("metrics.jsonl", {"step": step, "held_out": found})
        self.hooks.evaluated(step, found)

    def _sample(self, step: int) -> None:
        job, rows = self.job, []
        for row in job.data.shown:
            if self.stop.asked:
                return  # a stop waits for the checkpoint alone; this once is left out
            said = answer(job.policy, job.chat, row.prompt, max_tokens=ANSWER_TOKENS)
            rows.append({"prompt": row.question, "kind": row.kind, "answer": said.text})
        if rows:
            self.folder.append("samples.jsonl", {"step": step, "answers": rows})
            self.hooks.sampled(step, [(row["prompt"], row["answer"]) for row in rows])
