"""A run on several machines, seen from one rank: it joins, is compared, and is watched.

Every rank has the model and the pairs on its own disk; what differs is named before the first step.
Settings, and after a resume weights and optimizer, come from rank 0. It alone writes the run's
folder and shows what happens.
"""

import faulthandler
import json
import os
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlx_dpo.errors import (
    DeviceFaultError,
    MemoryShortError,
    PeerError,
    StoppedError,
    UsageError,
    is_device_fault,
    is_shortage,
    one_line,
)
from mlx_dpo.manifest import digest
from mlx_dpo.models.device import recommended_here
from mlx_dpo.models.parameters import fingerprint, named_arrays
from mlx_dpo.records import VERSION
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.launcher import PLACE, QUIT, is_ours
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.peers import STOPPED, Alone, Group
from mlx_dpo.training.trainer import Callback, DPOTrainer

TIMEOUT = 300.0  # seconds that a rank waits for the others
# Others may be downloading a model, or writing one.
_LONG = {"settings", "model and data", "the end"}
_PATIENCE = 10
_TO_CONNECT = 60.0  # seconds at least: a process that is started here may have to wait for a core
_LOOKED_AT, _MUCH = 10, 0.3  # steps, and the share of their time that is warned of
_REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def joined(timeout: float = TIMEOUT) -> Iterator[Alone]:
    """The peers of this process while the block runs; where it fails, all ranks end with its code.

    Args:
        timeout: Seconds that another rank may be silent; ten times as many at start and end, and
            60 at least while they connect.

    Raises:
        PeerError: If the others are not found.
        SystemExit: On ranks but the first, whose message is shown by the first.
    """
    peers = Group(_connected(timeout))
    if peers.size == 1:
        yield Alone()
        return
    with _watched(peers, timeout):
        try:
            names = peers.texts("names", socket.gethostname())
            peers.names = names if len(set(names)) > 1 else peers.names
            yield peers
            try:
                peers.meet("the end")
            except (PeerError, StoppedError):
                if peers.rank:  # to the first it means nothing: what it made is whole
                    raise
        except BaseException as error:
            code = _exit_code(error)
            told = peers.tell(code, one_line(error)) or (peers.is_over and not peers.is_lost)
            if peers.rank and told:
                raise SystemExit(code) from None
            raise


def _connected(timeout: float) -> Any:
    """MLX's group. While it connects no Python runs: the kernel must end it, if anything does."""
    place = json.loads(os.environ.get(PLACE, "{}"))
    os.environ.update(place.get("env", {}))
    old = {number: signal.signal(number, signal.SIG_DFL) for number in _REQUESTS[:2]}
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        for name, content in place.get("files", {}).items():
            os.environ[name] = os.path.join(folder, name)
            with open(os.environ[name], "w", encoding="utf-8") as file:
                file.write(content)
        faulthandler.dump_traceback_later(max(timeout, _TO_CONNECT), exit=True, file=nowhere)
        try:
            return mx.distributed.init(strict=True, backend=place.get("backend", "any"))
        except RuntimeError as error:
            raise PeerError(f"no connection to the other ranks: {one_line(error)}") from None
        finally:
            faulthandler.cancel_dump_traceback_later()
            for number, handler in old.items():
                signal.signal(number, handler)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    if is_shortage(error):
        return MemoryShortError.exit_code
    if is_device_fault(error):
        return DeviceFaultError.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return int(getattr(error, "exit_code", 1)) or 1


class _Watchdog(threading.Thread):
    """Ends the process where a peer is silent for too long, or when it is told to a second time.

    While MLX waits for a peer no handler of Python runs, but threads do.
    """

    def __init__(self, timeout: float, rank: int) -> None:
        super().__init__(daemon=True)
        self._timeout, self._rank = timeout, rank
        self._waits: tuple[float, str, float] | None = None  # until when, for what, since seconds
        self._requests = 0
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._stdin = [0] if is_ours() else []
        self._old = -1
        self.is_closed = False

    def open(self) -> None:
        """Begin to watch; signals are seen here even where their handlers have to wait."""
        if threading.current_thread() is threading.main_thread():
            self._old = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self.start()

    def close(self) -> None:
        """Watch no longer."""
        self.is_closed = True
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._old)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """The others are waited for while the block runs."""
        seconds = self._timeout * (_PATIENCE if what in _LONG else 1)
        self._waits = time.monotonic() + seconds, what, seconds
        try:
            yield
        finally:
            self._waits = None

    def run(self) -> None:
        """Look several times a second."""
        while not self.is_closed:
            ready, _, _ = select.select([self._woken, *self._stdin], [], [], 0.2)
            if self._woken in ready:
                self._signalled(os.read(self._woken, 64))
            if 0 in ready:
                self._told(os.read(0, 64))
            waits = self._waits
            if waits is not None and time.monotonic() > waits[0]:
                self._leave(
                    PeerError.exit_code,
                    f"no answer from the other ranks for {waits[2]:.0f} s (--peer-timeout), "
                    f"waiting for {waits[1]}; what was saved is whole: go on with --resume",
                )

    def _signalled(self, numbers: bytes) -> None:
        self._requests += sum(number in _REQUESTS for number in numbers)
        if self._requests > 1:
            self._leave(STOPPED, "interrupted")
        elif self._requests and self._waits is not None and self._rank == 0:
            os.write(2, b"stopping when the other ranks answer; a second time stops at once\n")

    def _told(self, words: bytes) -> None:
        if QUIT in words:
            os._exit(STOPPED)
        if not words:  # the launcher is gone
            self._stdin = []
        os.kill(os.getpid(), signal.SIGTERM)

    def _leave(self, code: int, text: str) -> None:
        os.write(2, f"mlx_dpo: rank {self._rank}: {text}\n".encode())
        os._exit(code)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """A signal that comes while the block runs is handled after it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = list[int]()
    old = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in _REQUESTS
        if callable(signal.getsignal(number))
    }
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    for first in came[:1]:  # called, not sent: the watchdog has counted it
        cast("Callable[[int, Any], Any]", old[signal.Signals(first)])(first, None)


@contextmanager
def _watched(peers: Group, timeout: float) -> Iterator[None]:
    watchdog = _Watchdog(timeout, peers.rank)
    peers.around, peers.hold = watchdog.waiting, _signals_wait
    watchdog.open()
    try:
        yield
    finally:
        watchdog.close()


def compare(peers: Alone, what: str, mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank has; refuses ranks that have other than the first.

    Args:
        peers: All of them.
        what: The moment.
        mine: Of this rank, by name; names that begin with a low line are not compared.

    Raises:
        UsageError: On all ranks, with the rank and the name.
    """
    if not isinstance(peers, Group):
        return [mine]
    found: list[dict[str, Any]] = [
        json.loads(text) for text in peers.texts(what, json.dumps(mine, default=str))
    ]
    for rank, other in enumerate(found):
        for name in dict.fromkeys([*found[0], *other]):
            there, here = other.get(name), found[0].get(name)
            if there != here and not name.startswith("_"):
                peers.is_over = True
                raise UsageError(
                    f"{peers.called(rank)} differs from {peers.called(0)} in {name}: "
                    f"{_short(there)}, not {_short(here)}; nothing was trained"
                )
    return found


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) < 60 else f"{text[:8]}..."


def same_start(peers: Alone, config: Path | None, words: dict[str, Any]) -> int | None:
    """Refuse ranks with other versions, or that were started with other words.

    Args:
        peers: All ranks.
        config: The config file.
        words: The options that were typed, by name.

    Returns:
        The least memory that a system recommends for a rank; None where none does.

    Raises:
        UsageError: If there are some.
    """
    versions = {name: version(name) for name in ("mlx", "mlx-lm", "transformers")}
    ours = {"mlx-dpo": VERSION, "source of mlx-dpo": _digest_of_source()}
    typed = {f"--{name.replace('_', '-')}": str(value) for name, value in words.items() if value}
    if config is not None and config.is_file():
        typed["content of CONFIG"] = digest(config.read_bytes())
    here = {"_memory": recommended_here(), "_host": socket.gethostname()}
    found = compare(peers, "versions and options", {**ours, **versions, **typed, **here})
    hosts = [rank["_host"] for rank in found]
    memories = [rank["_memory"] // hosts.count(rank["_host"]) for rank in found if rank["_memory"]]
    return min(memories, default=None)


def _digest_of_source() -> str:
    """Of this package's Python: in clones the version is the same for months."""
    root = Path(__file__).parent.parent
    files = [
        Path(folder, name)
        for folder, _, names in os.walk(root, followlinks=True)  # convert is a link in a clone
        for name in names
        if name.endswith(".py") and not name.startswith(".")  # an editor's lock
    ]
    content = [f"{file.relative_to(root)} {digest(file.read_bytes())}" for file in sorted(files)]
    return digest("\n".join(content).encode())


def settings_of_first(peers: Alone | None, mine: RunConfig | None) -> RunConfig | None:
    """The settings of rank 0; None where there is nothing to do."""
    if not isinstance(peers, Group):
        return mine
    first = compare(peers, "settings", {"_": None if mine is None else asdict(mine)})[0]["_"]
    return None if first is None else RunConfig(**first)


def compare_jobs(peers: Alone, job: Job, *, resumes: bool = False) -> bool:
    """Refuse ranks with another model or other pairs; returns whether rank 0 resumes.

    Raises:
        UsageError: If there are some.
    """
    trained = named_arrays(job.policy.trainable_parameters())
    shapes = " ".join(f"{n} {a.shape} {a.dtype}" for n, a in trained.items())
    mine = {"model": job.model_digest, "data": job.data.digest, "set of trained weights": shapes}
    found = compare(peers, "model and data", {**mine, "_resumes": resumes})
    return bool(found[0]["_resumes"])


def share_state(
    peers: Alone, trainer: DPOTrainer, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Set every rank's trainer to rank 0's state; returns its rows."""
    if not isinstance(peers, Group):
        return rows
    model, optimizer = trainer.model, trainer.optimizer
    trees = {"weights": model.trainable_parameters(), "optimizer": optimizer.state}
    mine = {"digest": fingerprint(trees), "state": trainer.state(), "rows": rows}
    texts = peers.texts("state", json.dumps(mine))
    first = json.loads(texts[0])
    if any(json.loads(text)["digest"] != first["digest"] for text in texts):
        arrays = peers.of_first("state", named_arrays(trees))
        tree = tree_unflatten(list(arrays.items()))
        if peers.rank:
            model.update(tree["weights"])
            optimizer.state = tree["optimizer"]
            mx.eval(model.parameters(), optimizer.state)
    trainer.restore(first["state"])
    return list(first["rows"])


class LinkWatch(Callback):
    """Warns once where much of the first steps goes to the other ranks."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._steps, self._spent, self._seconds = 0, 0.0, 0.0

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Look, once there are enough; the first is left out, which compiles and allocates."""
        self._steps += 1
        if 1 < self._steps <= _LOOKED_AT + 1:
            seconds = trainer.stages.phases.seconds
            self._spent += seconds.get("peers", 0.0)
            self._seconds += sum(seconds.values())
        if self._steps == _LOOKED_AT + 1 and self._spent > _MUCH * self._seconds:
            self._screen.warned(
                f"{self._spent / self._seconds:.0%} of the time goes to waiting for the other "
                "ranks and to sums over the link: a faster link, more pairs a step "
                "(--grad-accumulation) or --method lora would help"
            )
