"""Ranks are started, told to stop, and their worst exit code is the launcher's."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.runs import launcher
from mlx_dpo.runs.launcher import (
    PLACE,
    Hosts,
    Ranks,
    is_this_machine,
    local_hosts,
    read_hosts,
)

RING = [{"ssh": "mac-a", "ips": ["10.0.0.1"]}, {"ssh": "user@mac-b", "ips": ["10.0.0.2"]}]
# Reads what it is told, does nothing, and ends when the launcher is gone, or by SIGALRM.
DEAF = "(signal.alarm(60), sys.stdin.read())"


def ranks(program: str, lines: list[str] | None = None, hosts: Hosts | None = None) -> Ranks:
    """Two ranks that run a few words of Python, which know their `rank`."""
    begin = "import os, signal, sys; rank = int(os.environ['MLX_RANK']); "
    tell = (lines if lines is not None else []).append
    return Ranks(hosts or local_hosts(2), [sys.executable, "-c", begin + program], tell)


def ssh(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a script in the place of ssh."""
    stub = folder / "ssh"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("first", "second", "worst"),
    [
        *(("0", "0", 0), ("9", "1", 1), ("8", "7", 8), ("75", "9", 9), ("3", "0", 3)),
        ("1", "os.kill(os.getpid(), 9)", -9),
    ],
)
def test_the_worst_exit_code_is_the_one_that_says_most(first: str, second: str, worst: int) -> None:
    running = ranks(f"sys.exit({second} if rank else {first})")
    assert running.wait() == worst


def test_a_machine_that_ssh_does_not_reach_or_loses_is_a_lost_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh(tmp_path, monkeypatch, "exit 255")
    lines: list[str] = []
    assert ranks("sys.exit(75)", lines, Hosts(["127.0.0.1", "mac-b"])).wait() == 9
    assert lines == ["rank 1: ssh to mac-b failed, or was cut off"]


@pytest.mark.parametrize("own", ["Mac-A.local", "mac-a", "mac-a.lan"])
def test_a_machine_knows_its_own_name(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: own)
    assert all(map(is_this_machine, ["127.0.0.1", "me@mac-a.local", "Mac-A", own]))
    assert not any(map(is_this_machine, ["mac-b.local", "mac-a2", "10.0.0.1"]))


def test_a_rank_that_goes_on_when_another_has_failed_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launcher, "GRACE", 0.1)
    assert ranks(f"sys.exit(5) if rank else {DEAF}").wait() == 5


def test_a_stop_reaches_every_rank_and_the_second_ends_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = ranks("sys.exit(75 if sys.stdin.read(1) == 's' else 1)")
    running.send_signal(15)
    assert running.wait() == 75
    running = ranks("sys.exit(75 if sys.stdin.read(2) == 'sq' else 1)")
    running.send_signal(15)
    running.send_signal(15)
    assert running.wait() == 75
    monkeypatch.setattr(launcher, "LAST", 0.1)
    deaf = ranks(f"{DEAF} if rank else sys.exit(1)")
    deaf.send_signal(15)
    deaf.send_signal(15)
    assert deaf.wait() == 75
    assert deaf._processes[1].returncode == -signal.SIGKILL


def test_a_rank_sees_the_end_of_the_launcher() -> None:
    running = ranks("sys.exit(4 if sys.stdin.read() == '' else 1)")
    for process in running._processes:
        assert process.stdin is not None
        process.stdin.close()
    assert running.wait() == 4


def test_what_other_ranks_write_is_shown_with_their_number_but_for_noise_of_the_ring() -> None:
    lines: list[str] = []
    text = "mlx_dpo: no such file\\n[ring] Socket 3 was closed"
    assert ranks(f"print('{text}' if rank else '')", lines).wait() == 0
    assert lines == ["rank 1: no such file"]


def test_another_machine_is_reached_by_ssh_in_the_same_folder_with_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh(tmp_path, monkeypatch, 'echo "$@" > "$0.said"; for last; do :; done; exec sh -c "$last"')
    monkeypatch.chdir(tmp_path)
    hosts = Hosts(["127.0.0.1", "mac-b"], {"files": {"MLX_HOSTFILE": "[['it's']]"}})
    program = f"open(f'{{rank}}.json', 'w').write(os.environ['{PLACE}'])"
    assert ranks(program, hosts=hosts).wait() == 0
    assert json.loads(Path("1.json").read_text()) == hosts.place
    assert Path("0.json").read_text() == Path("1.json").read_text()
    assert Path("ssh.said").read_text().startswith("-o BatchMode=yes -o ConnectTimeout=20 -- mac-b")


def test_local_ranks_listen_on_this_machine_alone() -> None:
    ring = json.loads(local_hosts(3).place["files"]["MLX_HOSTFILE"])
    assert len({address for (address,) in ring}) == 3
    assert all(address.startswith("127.0.0.1:") for (address,) in ring)


def test_files_of_mlx_distributed_config_are_read(tmp_path: Path) -> None:
    file = tmp_path / "hosts.json"
    file.write_text(json.dumps(RING))
    found = read_hosts(file)
    assert found.names == ["mac-a", "user@mac-b"]
    assert json.loads(found.place["files"]["MLX_HOSTFILE"]) == [
        ["10.0.0.1:32323"],
        ["10.0.0.2:32324"],
    ]
    rdma = [{**host, "rdma": [None, "rdma_en2"][:: 1 - 2 * i]} for i, host in enumerate(RING)]
    file.write_text(json.dumps({"backend": "jaccl", "envs": ["A=b=c"], "hosts": rdma}))
    place = read_hosts(file).place
    assert place["backend"] == "jaccl"
    assert place["env"] == {"A": "b=c", "MLX_JACCL_COORDINATOR": "10.0.0.1:32323"}
    assert json.loads(place["files"]["MLX_IBV_DEVICES"]) == [
        [None, "rdma_en2"],
        ["rdma_en2", None],
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no list of hosts"),
        ("[1, 2]", "no list of hosts"),
        (json.dumps(RING[:1]), "needs two hosts, found 1"),
        (json.dumps([*RING, {"ssh": "-oProxyCommand=x", "ips": ["10.0.0.3"]}]), "no host that ssh"),
        (json.dumps([*RING, {"ssh": "mac-c"}]), "mac-c: no address in ips"),
        (json.dumps([*RING, {"ssh": "mac-c", "ips": ["mac-c.local"]}]), "is no IP address"),
        (json.dumps({"backend": "nccl", "hosts": RING}), "backend 'nccl'"),
    ],
)
def test_a_file_that_lists_no_hosts_is_refused(content: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=says):
        read_hosts(file)
