"""A process that copies a run's metrics.jsonl into a tracker while the file grows.

Trackers call servers, start threads, print, and leave work for the end of the program they are in.
So each has a process of its own, and the run never waits for it: what is sent is read from the
run's file. After an outage it goes on where it stopped, in this process or in that of the resumed
run, and sends no step twice. It imports no MLX.
"""

import fcntl
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

from mlx_dpo.errors import UsageError, one_line

PROGRAM = Path(__file__)
PACKAGES = {"trackio": "trackio", "wandb": "wandb", "tensorboard": "tensorboardX"}
MARKS = "trackers"  # folder in that of the run: what each tracker has
PROJECT = "mlx-dpo"
LOOK_EVERY, LONGEST_PAUSE = 1.0, 60.0  # seconds between looks at the file; after failures
LINGER = 30.0  # seconds that the process may outlive the run

# Our names, and TRL's. Held-out figures begin with eval_.
_NAMES = {
    "loss": "loss",
    "lr": "learning_rate",
    "grad_norm": "grad_norm",
    "chosen_reward": "rewards/chosen",
    "rejected_reward": "rewards/rejected",
    "reward_margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
}
_TOKEN = re.compile(r"[\w-]{32,}")  # what a tool's message may quote, as a key of its service

Figures = dict[str, float]
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Tracked:
    """What a tracker gets to know of a run.

    Attributes:
        tracker: Its name, a key of `PACKAGES`.
        folder: Of the run.
        name: Of the run.
        group: Of runs that belong together; None where there is none.
        settings: Without paths.
        steps_per_epoch: Optimizer steps.
    """

    tracker: str
    folder: str
    name: str
    group: str | None
    settings: dict[str, Any]
    steps_per_epoch: int


def trackers_of(text: str) -> tuple[str, ...] | None:
    """The trackers of `report_to`, each once; None where it names something else."""
    names = [name for part in text.split(",") if (name := part.strip()) not in ("", "none")]
    return tuple(dict.fromkeys(names)) if set(names) <= set(PACKAGES) else None


def check_installed(report_to: str) -> None:
    """Refuse trackers of a run whose package is missing.

    Raises:
        UsageError: If one is.
    """
    for name in trackers_of(report_to) or ():
        spec = find_spec(PACKAGES[name])
        if spec is None or spec.origin is None:  # wandb leaves folders of its name behind
            from mlx_dpo.extras import to_install

            needs = f"--report-to {name} needs {PACKAGES[name]}"
            raise UsageError(f"{needs}: {to_install(name)}")


class Tracker(Protocol):
    """A run in a tracker. Any call may raise, or never return.

    Attributes:
        place: Where a person finds it.
    """

    place: str

    def log(self, figures: Figures, step: int) -> None:
        """Take the figures of a step, counted from 1."""

    def finish(self, is_done: bool) -> None:
        """Take no more; the run has made its last step, or was stopped."""


class _Trackio:
    """Local files, unless the user's TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names a place."""

    def __init__(self, run: Tracked, mark: "Mark") -> None:
        space = os.environ.get("TRACKIO_SPACE_ID")
        if not (space or os.environ.get("TRACKIO_SERVER_URL")):
            os.environ["HF_HUB_OFFLINE"] = "1"  # it would ask the hub for the user's name
        import trackio

        self._module = trackio
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        trackio.init(
            project,
            name=f"{run.name}-{mark.id[:4]}",  # it knows runs by their names alone
            group=run.group,
            config=run.settings,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self.place = f"trackio show --project {project}"
        if space:
            self.place = f"https://huggingface.co/spaces/{space}"

    def log(self, figures: Figures, step: int) -> None:
        self._module.log(figures, step=step)

    def finish(self, is_done: bool) -> None:
        self._module.finish()


class _Wandb:
    """W&B's cloud, or the user's WANDB_BASE_URL; local files with WANDB_MODE=offline."""

    def __init__(self, run: Tracked, mark: "Mark") -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=mark.id,
            name=run.name,
            group=run.group,
            config=run.settings,
            dir=str(Path(run.folder).resolve()),
            resume="allow",
            # By itself it sends what the terminal shows, the command line, host and folders.
            settings=wandb.Settings(
                console="off",
                silent=True,
                host="",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )
        offline = "" if self._run.disabled else f"wandb sync {run.folder}/wandb/offline-run-*"
        self.place = self._run.url or offline

    def log(self, figures: Figures, step: int) -> None:
        self._run.log(figures, step=step)

    def finish(self, is_done: bool) -> None:
        self._run.finish(exit_code=0 if is_done else 1)


class _TensorBoard:
    """A file of events in the run's folder."""

    def __init__(self, run: Tracked, mark: "Mark") -> None:
        from tensorboardX import SummaryWriter

        folder, first = Path(run.folder) / "tensorboard", mark.step + 1
        # What a killed process wrote beyond its mark is written again, and hidden by purge_step.
        purge = {"purge_step": first} if mark.step else {}
        self._writer = SummaryWriter(str(folder), filename_suffix=f".{first}", **purge)
        if not mark.step:
            self._writer.add_text("settings", f"```\n{json.dumps(run.settings, indent=2)}\n```", 0)
        self.place = f"tensorboard --logdir {folder.parent}"

    def log(self, figures: Figures, step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, is_done: bool) -> None:
        self._writer.close()


_KINDS: dict[str, Callable[[Tracked, "Mark"], Tracker]] = {
    "trackio": _Trackio,
    "wandb": _Wandb,
    "tensorboard": _TensorBoard,
}


class Mark:
    """How far a tracker is, in a file that is locked by the process that sends.

    Attributes:
        id: Of the run in the tracker, made up once.
        step: The last step that was sent, counted from 1; 0 for none.
        has_held_out: Whether the evaluation after that step was sent too.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)  # of a run that was killed, it may be at work
        try:
            state = json.loads(os.read(self._descriptor, 4096))
        except ValueError:  # a new one
            state = {"id": os.urandom(4).hex(), "step": 0, "has_held_out": False}
        self.id, self.step = str(state["id"]), int(state["step"])
        self.has_held_out = bool(state["has_held_out"])
        self._write()

    def is_new(self, step: int, is_held_out: bool) -> bool:
        """Whether a row comes after all that were sent."""
        return (step, is_held_out) > (self.step, self.has_held_out)

    def move(self, step: int, is_held_out: bool) -> None:
        """Remember that a row was sent."""
        self.step, self.has_held_out = step, is_held_out
        self._write()

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._descriptor)

    def _write(self) -> None:
        names = ("id", "step", "has_held_out")
        text = json.dumps({name: getattr(self, name) for name in names})
        os.pwrite(self._descriptor, f"{text:<95}\n".encode(), 0)  # one write of always one length


class Follower:
    """Reads metrics.jsonl as it grows, and gives each new row to a tracker.

    Args:
        run: What to follow, and into which tracker.
        ending: Set when the run writes no more.
        tell: Takes messages: ``place``, where the tracker shows the run; ``sent``, the last step
            that was sent; ``failed``, why a call failed.
    """

    def __init__(self, run: Tracked, ending: threading.Event, tell: Tell) -> None:
        self._run, self._ending, self._tell = run, ending, tell
        self._tracker: Tracker | None = None
        self._file: IO[bytes] | None = None
        self._read = 0  # bytes

    def follow(self, is_done: Callable[[], bool]) -> bool:
        """Send until the run ends; whether all was sent.

        Args:
            is_done: Asked at the end: whether the run has made its last step.
        """
        mark = Mark(Path(self._run.folder) / MARKS / f"{self._run.tracker}.json")
        pause, is_last = 0.0, False
        while not is_last:
            is_last = self._ending.wait(pause)
            is_well = self._tried(lambda: self._send(mark))
            pause = LOOK_EVERY if is_well else min(LONGEST_PAUSE, 2 * max(pause, LOOK_EVERY))
        tracker = self._tracker
        if tracker is not None:
            is_well &= self._tried(lambda: tracker.finish(is_done()))
        if self._file is not None:
            self._file.close()
        mark.close()
        return is_well

    def _tried(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except (Exception, SystemExit) as error:
            self._tell({"failed": _TOKEN.sub("...", one_line(error))})
            return False
        return True

    def _send(self, mark: Mark) -> None:
        if self._tracker is None:
            self._tracker = _KINDS[self._run.tracker](self._run, mark)
            self._tell({"place": self._tracker.place, "sent": mark.step})
        file = Path(self._run.folder) / "metrics.jsonl"
        if self._file is None and file.is_file():
            self._file = file.open("rb")
        if self._file is None:
            return
        self._file.seek(self._read)
        for line in self._file:
            if not line.endswith(b"\n"):  # it is being written
                break
            row = json.loads(line)
            step, is_held_out = row["step"] + 1, "held_out" in row
            if mark.is_new(step, is_held_out):
                self._tracker.log(figures_of(row, self._run.steps_per_epoch), step)
                mark.move(step, is_held_out)
                self._tell({"sent": step})
            self._read += len(line)


def figures_of(row: dict[str, Any], steps_per_epoch: int) -> Figures:
    """A row of metrics.jsonl under TRL's names."""
    if held_out := row.get("held_out"):
        return {f"eval_{new}": held_out[old] for old, new in _NAMES.items() if old in held_out}
    figures = {new: row[old] for old, new in _NAMES.items() if old in row}
    return {**figures, "epoch": round((row["step"] + 1) / steps_per_epoch, 4)}


def first_line(run: Tracked) -> bytes:
    """What the process reads from its standard input first."""
    return json.dumps(asdict(run)).encode() + b"\n"


LAST_LINE = b"done\n"  # the run has made its last step


def _main() -> int:
    """Follow the run of the first line until standard input ends; 0 where all was sent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they stop the run, whose end is waited for
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # what a tracker asks or prints
        os.dup2(nothing, stream)
    run = Tracked(**json.loads(asked.readline()))
    ending, last = threading.Event(), bytearray()

    def wait() -> None:
        last.extend(asked.read())
        ending.set()
        time.sleep(LINGER)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()

    def tell(message: dict[str, Any]) -> None:
        with suppress(OSError):  # the run is gone
            answers.write(json.dumps(message) + "\n")

    try:
        return 0 if Follower(run, ending, tell).follow(lambda: last == LAST_LINE) else 1
    except Exception as error:  # its mark can't be written
        tell({"failed": one_line(error)})
        return 1


if __name__ == "__main__":
    sys.exit(_main())
