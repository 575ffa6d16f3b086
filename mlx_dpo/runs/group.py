"""A run on several machines, seen from one rank: it joins, is compared, and is watched.

Every rank has the model and the pairs on its own disk; what differs is named before the first step.
Settings, and after a resume weights and optimizer, come from rank 0. It alone writes the run's
folder and shows what happens.
"""

import faulthandler
import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
from mlx_dpo.models.device import TF32_SWITCH, architecture, recommended_here, tf32_enabled
from mlx_dpo.models.parameters import fingerprint, named_arrays
from mlx_dpo.records import VERSION
from mlx_dpo.runs.callbacks import Screen, is_due
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.launcher import PLACE
from mlx_dpo.runs.watchdog import ALONE, REQUESTS, Watchdog, signals_wait
from mlx_dpo.training.loss import Metrics
from mlx_dpo.training.peers import STOPPED, Alone, Group
from mlx_dpo.training.trainer import Callback, DPOTrainer

TIMEOUT = 300.0  # seconds that a rank waits for the others
_TO_CONNECT = 60.0  # seconds at least: a process that is started here may have to wait for a core
_LOOKED_AT, _MUCH = 10, 0.3  # steps, and the share of their time that is warned of


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
    old = {number: signal.signal(number, signal.SIG_DFL) for number in REQUESTS[:2]}
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


@contextmanager
def _watched(peers: Group, timeout: float) -> Iterator[None]:
    watchdog = Watchdog(timeout, peers.rank)
    peers.around, peers.hold = watchdog.waiting, signals_wait
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
    versions[TF32_SWITCH] = "on" if tf32_enabled() else "off"
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


def compare_scoring(peers: Alone, path: str, screen: Screen) -> None:
    """Refuse ranks that score by another path than the first; warn of another chip.

    Args:
        peers: All of them.
        path: The key of this rank's.
        screen: Is warned.

    Raises:
        UsageError: If there are some.
    """
    if not isinstance(peers, Group):
        return
    mine = {"way to score (alike with --plain)": path, "_chip": architecture()}
    found = compare(peers, "way to score", mine)
    for rank, other in enumerate(found):
        if other["_chip"] != found[0]["_chip"]:
            screen.warned(
                f"{peers.called(rank)} computes on {other['_chip'] or 'an unknown chip'}, "
                f"{peers.called(0)} on {found[0]['_chip'] or 'an unknown chip'}: last bits of "
                "log-probs and weights may differ from a run on one kind"
            )


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


class Rejoin(Callback):
    """Lets all ranks meet after a step where the first may have answered prompts or saved.

    A large model takes longer to write than a rank that is at work may be silent.

    Args:
        config: The settings.
    """

    def __init__(self, config: RunConfig) -> None:
        # The best evaluation is saved, too.
        self._everies = config.save_every, config.sample_every, config.eval_every

    def at_start(self, trainer: DPOTrainer) -> None:
        """Meet: the answers that followed the last step may have been missing."""
        trainer.stages.peers.meet(ALONE)

    def after_step(self, trainer: DPOTrainer, step: int, metrics: Metrics | None) -> None:
        """Meet, if it is due."""
        if any(is_due(trainer, step, every) for every in self._everies):
            trainer.stages.peers.meet(ALONE)


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
