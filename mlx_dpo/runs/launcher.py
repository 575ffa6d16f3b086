"""Starts the ranks of a run: on this machine, or on others over ssh; its exit code is the worst's.

A rank's stdin is how it is told to stop. When the launcher is gone it closes, which means the same.
So nothing has to be killed on another machine.
"""

import ipaddress
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_dpo.errors import DeviceFaultError, PeerError, StoppedError, UsageError
from mlx_dpo.paths import text_of

PLACE = "MLX_DPO_PEERS"  # what a rank that was started here needs to find the others, as JSON
STOP, QUIT = b"s", b"q"  # what it is told on its stdin
LOCAL = "127.0.0.1"
_RANKED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # set by mlx.launch, mpirun, here
PORT = 32323  # the first, as with mlx.launch
GRACE = 10.0  # seconds that the others have, once a rank has failed
LAST = 1.0  # of these, after the order to quit
BACKENDS = ("ring", "jaccl", "jaccl-ring")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20")
_CUT_OFF = 255  # of ssh, where it did not reach the host, lost it, or a signal ended the rank there


def is_rank() -> bool:
    """Whether this process was started as one of several."""
    return any(name in os.environ for name in _RANKED)


def is_ours() -> bool:
    """Whether it was started from here, and not by another launcher."""
    return PLACE in os.environ


def check_shares(ranks: int, pairs: int) -> None:
    """Refuse more ranks than a step has pairs.

    Raises:
        UsageError: If there are.
    """
    if ranks > pairs:
        raise UsageError(
            f"{ranks} ranks share the {pairs} pairs of a step, and some would have none: raise "
            f"--grad-accumulation or --batch-size, or use {pairs} ranks"
        )


@dataclass(frozen=True)
class Hosts:
    """The machines of a run, one a rank.

    Attributes:
        names: As ssh knows them.
        place: What each rank needs to find the others, for `group.joined`.
        is_local: Whether all are this machine, and nothing is sent beyond it.
    """

    names: list[str]
    place: dict[str, Any] = field(default_factory=dict)
    is_local: bool = False


def local_hosts(ranks: int) -> Hosts:
    """So many ranks on this machine, which listen on 127.0.0.1 alone."""
    sockets = [socket.create_server((LOCAL, 0)) for _ in range(ranks)]
    ring = [[f"{LOCAL}:{each.getsockname()[1]}"] for each in sockets]
    for each in sockets:
        each.close()
    place = {"backend": "ring", "files": {"MLX_HOSTFILE": json.dumps(ring)}}
    return Hosts([LOCAL] * ranks, place, is_local=True)


def read_hosts(file: Path) -> Hosts:
    """Hosts of a file as ``mlx.distributed_config`` writes it.

    Raises:
        UsageError: If it is none, or names a backend that is started otherwise.
    """
    try:
        content = json.loads(text_of(file))
        options = content if isinstance(content, dict) else {"hosts": content}
        hosts = [
            (str(host["ssh"]), [str(ip) for ip in host.get("ips", [])], host.get("rdma", []))
            for host in options["hosts"]
        ]
        env = dict(entry.split("=", 1) for entry in options.get("envs", []))
        backend = options.get("backend") or "ring"
    except OSError as error:
        raise UsageError(f"{file}: not readable: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{file}: no list of hosts ({error}); "
            "mlx.distributed_config --output-hostfile writes one"
        ) from None
    _check_hosts(file, [(name, ips) for name, ips, _ in hosts], backend)
    names = [name for name, _, _ in hosts]
    if backend == "ring":
        numbers = iter(range(PORT, PORT + 10_000))
        ring = [[_address(ip, next(numbers)) for ip in ips] for _, ips, _ in hosts]
        files = {"MLX_HOSTFILE": json.dumps(ring)}
    else:
        files = {"MLX_IBV_DEVICES": json.dumps([rdma for _, _, rdma in hosts])}
        env["MLX_JACCL_COORDINATOR"] = _address(hosts[0][1][0], PORT)
        env |= {"MLX_JACCL_RING": "1"} if backend == "jaccl-ring" else {}
    place = {"backend": backend.partition("-")[0], "files": files, "env": env}
    return Hosts(names, place)


def _check_hosts(file: Path, hosts: Sequence[tuple[str, list[str]]], backend: str) -> None:
    if backend not in BACKENDS:
        raise UsageError(
            f"{file}: backend {backend!r}: only {', '.join(BACKENDS)} can be started from here; "
            "with mpi, mpirun starts mlx_dpo train on each host"
        )
    if len(hosts) < 2:
        raise UsageError(f"{file}: a run on several machines needs two hosts, found {len(hosts)}")
    for name, ips in hosts:
        if not name or name.startswith("-") or not name.isprintable() or " " in name:
            raise UsageError(f"{file}: {name!r} is no host that ssh could go to")
        if backend == "ring" and not ips:
            raise UsageError(f"{file}: {name}: no address in ips, which the ring needs")
        for ip in ips:
            try:
                ipaddress.ip_address(ip)
            except ValueError:
                raise UsageError(f"{file}: {name}: {ip!r} is no IP address") from None
    if not hosts[0][1]:
        raise UsageError(f"{file}: {hosts[0][0]}: no address in ips, where the others find it")


def _address(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


class Ranks:
    """The running ranks of a run; a `supervise.Process`.

    Args:
        hosts: Where they run.
        command: The command line of each.
        tell: Called with each line that a rank other than the first writes, and with what the
            launcher has to say.
        stdout: Of the first, as for `subprocess.Popen`.
    """

    def __init__(
        self,
        hosts: Hosts,
        command: list[str],
        tell: Callable[[str], None],
        *,
        stdout: int | None = None,
    ) -> None:
        self._hosts, self._tell = hosts, tell
        self._requests, self._stdout = 0, stdout
        self._readers: list[threading.Thread] = []
        self._processes = [self._started(rank, command) for rank in range(len(hosts.names))]

    def _started(self, rank: int, command: list[str]) -> "subprocess.Popen[bytes]":
        name = self._hosts.names[rank]
        env = {"MLX_RANK": str(rank), PLACE: json.dumps(self._hosts.place)}
        is_here = self._hosts.is_local or is_this_machine(name)
        if not is_here:
            exports = [f"{key}={shlex.quote(value)}" for key, value in env.items()]
            script = f"cd {shlex.quote(os.getcwd())} && exec env {' '.join(exports)} "
            command = [*_SSH, "--", name, script + shlex.join(command)]
        process = subprocess.Popen(
            command,
            env={**os.environ, **env} if is_here else None,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if rank else self._stdout,
            stderr=subprocess.STDOUT if rank else None,
            start_new_session=True,  # Ctrl-C comes to the launcher alone, which passes it on
        )
        if rank:
            reader = threading.Thread(target=self._read, args=(rank, process), daemon=True)
            self._readers.append(reader)
            reader.start()
        return process

    def _read(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.decode(errors="replace").rstrip()
            if text and not text.startswith("[ring]"):  # MLX's own, a dozen lines for one end
                text = text.removeprefix("mlx_dpo: ")
                named = text.startswith(f"rank {rank}")
                self._tell(text if named else f"rank {rank}: {text}")
        process.stdout.close()

    def said(self) -> str:
        """What the first rank wrote to its stdout, where that is a pipe."""
        stdout = self._processes[0].stdout
        if stdout is None:
            return ""
        with stdout:
            return stdout.read().decode()

    def send_signal(self, number: int) -> None:
        """Let all ranks stop, saved; the second time, leave at once."""
        self._requests += 1
        self._say(STOP if self._requests == 1 else QUIT)

    def _say(self, word: bytes) -> None:
        for process in self._processes:
            with suppress(OSError):
                assert process.stdin is not None
                process.stdin.write(word)
                process.stdin.flush()

    def wait(self) -> int:
        """The worst exit code, once all have ended; below 0 where a signal ended a rank.

        When one has failed, the others have `GRACE` seconds.
        """
        until, killed = float("inf"), set[int]()
        with self._passing_signals():
            while None in (running := [process.poll() for process in self._processes]):
                if any(running) and until == float("inf"):
                    until = time.monotonic() + GRACE
                if self._requests > 1:  # one that is suspended does not hear it
                    until = min(until, time.monotonic() + LAST)
                if time.monotonic() > until - LAST:
                    self._say(QUIT)
                if time.monotonic() > until:
                    late = [rank for rank, code in enumerate(running) if code is None]
                    killed |= set(late)
                    for rank in late:
                        self._processes[rank].kill()
                time.sleep(0.05)
        for reader in self._readers:
            reader.join(1)
        for process in self._processes:
            with suppress(OSError):
                assert process.stdin is not None
                process.stdin.close()
        codes = {rank: process.wait() for rank, process in enumerate(self._processes)}
        if self._requests and any(codes.values()):
            return StoppedError.exit_code
        return self._worst({rank: code for rank, code in codes.items() if rank not in killed})

    def _worst(self, codes: dict[int, int]) -> int:
        for rank, code in codes.items():
            if code < 0:
                self._tell(f"rank {rank} was ended by {signal.Signals(-code).name}")
            elif code == _CUT_OFF and not self._hosts.is_local:
                self._tell(f"rank {rank}: ssh to {self._hosts.names[rank]} failed, or was cut off")
                codes[rank] = PeerError.exit_code
        return max(codes.values(), key=_weight)

    @contextmanager
    def _passing_signals(self) -> Iterator[None]:
        old = {
            number: signal.signal(number, lambda number, frame: self.send_signal(number))
            for number in _SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT
        }
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def _weight(code: int) -> tuple[int, int]:
    """How much an exit code counts: a crash most, a lost peer least of all failures."""
    if code < 0:
        return 5, -code
    order = {DeviceFaultError.exit_code: 4, PeerError.exit_code: 2, StoppedError.exit_code: 1, 0: 0}
    return order.get(code, 3), code


def is_this_machine(name: str) -> bool:
    """Whether a name of ssh is this machine's."""
    own = socket.gethostname().lower()
    plain = name.rpartition("@")[2].lower().removesuffix(".local")  # as Macs find each other
    return plain in (LOCAL, "localhost", own.removesuffix(".local"), own.partition(".")[0])
