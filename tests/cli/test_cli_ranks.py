"""What `train`, `plan` and `doctor` refuse before any rank is started, and what they say of a link.

Real ranks: tests/faults/ranks.py.
"""

import json
from pathlib import Path

import pytest

from mlx_dpo.cli.plan import about_worth
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
