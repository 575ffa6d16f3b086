"""Trackers of a run (`--report-to`): starts a process for each, hears of it, and ends it."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from mlx_dpo.errors import one_line
from mlx_dpo.models.card import published
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.folder import environment
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.tracker_process import LAST_LINE, PROGRAM, Tracked, first_line, trackers_of
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.trainer import Callback, DPOTrainer

PATIENCE = 60.0  # seconds without a sign before a tracker is said to hang
WAIT = 10.0  # seconds for all trackers together when the run ends

_NAMED = ("model", "data", "eval_data", "adapter")  # go along without their folders
_PRIVATE = ("out", "run_dir", "overwrite", "report_to")


class Trackers(Callback):
    """Keeps the run's trackers informed while the block runs; training never waits for one.

    Whatever a tracker does, there is one warning, and the run goes on.

    Args:
        job: What the run works with.
        folder: The run's.
        screen: Hears where each tracker shows the run, and of the first trouble of each.
        wait: Seconds that all of them together have at the end.
    """

    def __init__(self, job: Job, folder: Path, screen: Screen, *, wait: float = WAIT) -> None:
        self._job, self._folder, self._screen, self._wait = job, folder, screen, wait
        self._links: list[_Link] = []
        self._step, self._is_done = 0, False

    def __enter__(self) -> "Trackers":
        for tracker in trackers_of(self._job.config.report_to) or ():
            run = _tracked(tracker, self._job, self._folder)
            try:
                self._links.append(_Link(run))
            except OSError as error:
                self._screen.warned(f"{tracker}: not started: {one_line(error)}")
        return self

    def at_start(self, trainer: DPOTrainer) -> None:
        """A resumed run has made some steps."""
        self._step = trainer.step

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Hear of the trackers; they read the step's figures in metrics.jsonl."""
        self._step = trainer.step
        for link in self._links:
            link.hear(0)
            self._show_place(link)
            if not link.is_warned and (trouble := link.trouble(self._step)):
                link.is_warned = True
                self._screen.warned(f"{link.name}: {trouble}; the run goes on")

    def at_end(self, trainer: DPOTrainer) -> None:
        """From now on the run counts as done in the trackers."""
        self._is_done = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._links:
            self._screen.working("waiting for the trackers")
        for link in self._links:
            link.close(LAST_LINE if self._is_done else b"")
        deadline = time.monotonic() + self._wait
        for link in self._links:
            is_whole = link.ended(deadline)
            self._show_place(link)
            if not is_whole:
                self._show_missing(link)

    def _show_place(self, link: "_Link") -> None:
        if link.place:
            self._screen.tracked(f"{link.name}: {link.place}")
            link.place = ""

    def _show_missing(self, link: "_Link") -> None:
        """Say what a tracker lacks in the end; as a warning, where there was none of it yet."""
        missing = max(0, self._step - link.sent)
        what = f"{missing} of {self._step} steps were not sent" if missing else "it was not closed"
        text = f"{what}; {self._folder / 'metrics.jsonl'} has every step"
        if link.is_warned:
            self._screen.tracked(f"{link.name}: {text}")
        else:
            self._screen.warned(f"{link.name}: {link.trouble(self._step)}: {text}")


class _Link:
    """A tracker's process, seen from the run.

    Attributes:
        name: Of the tracker.
        place: Where it shows the run; empty until that is known, and once it was said.
        sent: The last step it has.
        is_warned: Whether the user was told of its trouble.
    """

    def __init__(self, run: Tracked) -> None:
        self.name, self.place, self.sent, self.is_warned = run.tracker, "", 0, False
        self._failed, self._heard = "", time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],  # -P: not what lies beside the file
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            start_new_session=True,  # Ctrl-C is for the run
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asking, self._answers = self._process.stdin, self._process.stdout
        self._rest = b""
        self._poll = select.poll()  # select.select takes no number of a file above 1023
        self._poll.register(self._answers, select.POLLIN)
        self._say(first_line(run))

    def hear(self, seconds: float) -> bool:
        """Take what the process says, waiting so long for it; whether it may say more."""
        while self._poll.poll(seconds * 1000):
            if not (read := os.read(self._answers.fileno(), 65536)):
                return False
            self._heard, seconds = time.monotonic(), 0
            *lines, self._rest = (self._rest + read).split(b"\n")
            for message in map(json.loads, lines):
                self.place = message.get("place", self.place)
                self.sent = message.get("sent", self.sent)
                self._failed = self._failed or message.get("failed", "")
        return True

    def trouble(self, step: int) -> str:
        """What is wrong with the tracker after so many steps; empty where nothing is."""
        if self._failed:
            return self._failed
        if self._process.poll():
            return f"its process ended with exit code {self._process.returncode}"
        silent = time.monotonic() - self._heard
        if step > self.sent and silent > PATIENCE:
            return f"no answer for {silent:.0f} s"
        return ""

    def close(self, last: bytes) -> None:
        """Tell the process that nothing follows."""
        self._say(last)
        with suppress(OSError):
            self._asking.close()

    def ended(self, deadline: float) -> bool:
        """Wait for the process to end, and end it after the deadline; whether it sent all."""
        while (left := deadline - time.monotonic()) > 0 and self.hear(left):
            pass
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._failed = self._failed or "it had not finished in time"
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self.hear(0)
        self._answers.close()
        return self._process.returncode == 0

    def _say(self, line: bytes) -> None:
        with suppress(OSError):  # it has ended, which `trouble` tells
            self._asking.write(line)


def _tracked(tracker: str, job: Job, folder: Path) -> Tracked:
    """What a tracker gets to know of a run."""
    config = job.config
    path = folder.resolve()
    name, group = path.name, None
    if name == "run" and path.parent.name.startswith("beta-"):  # of a sweep
        group = path.parents[1].name
        name = f"{group}-{path.parent.name}"
    pairs = config.batch_size * config.grad_accumulation
    return Tracked(
        *(tracker, str(folder), name, group, settings_of(job)),
        steps_per_epoch=-(-len(job.train.examples) // pairs),
    )


def settings_of(job: Job) -> dict[str, Any]:
    """A run's settings, versions and counts for a tracker: no path, nothing of a pair."""
    given = {key: value for key, value in asdict(job.config).items() if value is not None}
    settings = {key: value for key, value in given.items() if key not in _PRIVATE}
    named = {key: published(settings[key]) for key in _NAMED if key in settings}
    counts = {
        "training_pairs": len(job.train.examples),
        "held_out_pairs": len(job.held_out.examples),
        "max_steps": job.max_steps,
    }
    return {**settings, **named, **counts, **environment()}
