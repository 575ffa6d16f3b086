"""What `train` refuses before any rank is started, and what `plan` and `doctor` say of a link.

Real runs on some ranks: tests/faults/ranks.py.
"""

import json
import os
import socket
from pathlib import Path

import pytest

from mlx_dpo.cli.plan import about_worth
from mlx_dpo.runs import launcher
from mlx_dpo.runs.link import Link
from tests.cli.conftest import run
from tests.runs.conftest import ORACLE

TRAIN = ["train", "--model", str(ORACLE), "--data", "pairs.json", "--batch-size", "2"]


def hosts(count: int) -> str:
    file = Path("hosts.json")
    file.write_text(json.dumps([{"ssh": f"mac-{i}", "ips": [f"10.0.0.{i}"]} for i in range(count)]))
    return str(file)


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ranks", "3"], "3 ranks share the 2 pairs of a step"),
        (["--ranks", "2", "--hosts", "hosts.json"], "give one"),
        (["--hosts", "none.json"], "none.json: not readable"),
        (["--hosts", "hosts.json"], "3 ranks share the 2 pairs of a step"),
    ],
)
def test_what_can_not_be_shared_is_refused_before_anything_starts(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts(3)
    code, _, err = run(capsys, *TRAIN, *words)
    assert (code, says in err) == (2, True)
    assert not Path("runs").exists()


@pytest.mark.usefixtures("workplace")
def test_a_rank_of_another_launcher_starts_no_ranks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_RANK", "0")
    code, _, err = run(capsys, *TRAIN, "--ranks", "2")
    assert (code, "leave --ranks and --hosts out" in err) == (2, True)


def test_a_step_is_worth_sharing_by_what_its_sums_take() -> None:
    link = Link(ranks=2, latency=0.001, bandwidth=100e6)
    assert link.seconds(100_000_000, 10) == pytest.approx(1.01)
    # Half of a step of 2 s and a sum of 1 s are as long as the step.
    assert link.least_step(1.0, 1 / 2) == pytest.approx(2)
    # 1.7 times as fast: 10 / 1.7 = 5 + 0.88
    assert link.least_step(0.882, 0.85) == pytest.approx(10, rel=1e-3)
    assert about_worth(link, 1.0, 20.0).startswith("worth it")
    assert about_worth(link, 1.0, 5.0).startswith("of little use")
    assert about_worth(link, 1.0, 1.0).startswith("not worth it")
    assert "11 s or more" in about_worth(link, 1.0, None)


def other_machine(monkeypatch: pytest.MonkeyPatch, script: str = "") -> str:
    """A file of two machines that are both this one; a stub of ssh reaches the second.

    Args:
        monkeypatch: Of the test.
        script: What the second does before its rank is started.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setattr(launcher, "PORT", free.getsockname()[1])
    stub = Path("ssh")
    stub.write_text(f'#!/bin/sh\n{script}\nfor last; do :; done\nexec sh -c "$last"\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    names = ["127.0.0.1", "mac-b.local"]
    Path("hosts.json").write_text(json.dumps([{"ssh": n, "ips": ["127.0.0.1"]} for n in names]))
    return "hosts.json"


@pytest.mark.survival
@pytest.mark.usefixtures("workplace")
def test_the_doctor_measures_the_link_between_machines(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = other_machine(monkeypatch)
    monkeypatch.setattr("mlx_dpo.insight.doctor.examination.standard_specimens", lambda: ([], []))
    monkeypatch.setattr("mlx_dpo.insight.doctor.examination.examine", lambda *_: [])
    monkeypatch.setattr("mlx_dpo.insight.doctor.examination.worst", lambda _: "ok")
    code, out, _ = run(capfd, "doctor", "--hosts", file, "--json")
    link = json.loads(out)["machine"]["link"]
    assert (code, link["ranks"]) == (0, 2)
    assert link["latency"] > 0
    assert link["bandwidth"] > 0


@pytest.mark.survival
@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(
    ("script", "code", "says"),
    [
        ("export PYTHONPATH=$PWD/other:$PYTHONPATH", 2, "rank 1 differs from rank 0 in mlx: 9.9,"),
        ("exit 255", 9, "rank 1: ssh to mac-b.local failed, or was cut off"),
    ],
)
def test_the_doctor_names_the_machine_that_is_otherwise_or_not_there(
    script: str,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(launcher, "GRACE", 0.1)
    Path("other/mlx-9.9.dist-info").mkdir(parents=True)
    Path("other/mlx-9.9.dist-info/METADATA").write_text("Name: mlx\nVersion: 9.9\n")
    ended, _, err = run(capfd, "doctor", "--hosts", other_machine(monkeypatch, script))
    assert ended == code, err
    assert says in err
    assert "the link was not measured" in err
