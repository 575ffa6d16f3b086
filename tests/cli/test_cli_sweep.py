"""A sweep trains once for each beta, keeps what is finished, and sets the results side by side."""

from pathlib import Path

import pytest

from tests.cli.test_cli import exit_code
from tests.runs.conftest import ORACLE, workplace

__all__ = ["workplace"]  # a fixture, used by its name

ARGS = [
    *("sweep", "--model", str(ORACLE), "--data", "pairs.json", "--steps", "2", "--run-dir", "s"),
    *("--learning-rate", "1e-3", "--warmup-steps", "0"),
]


def test_each_beta_is_trained_once_and_shown(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*ARGS, "--beta", "0.1,1") == 0
    shown = capsys.readouterr()
    rows = [line.split() for line in shown.out.splitlines()]
    assert [row[0] for row in rows if row and row[0] in ("beta", "0.1", "1")] == [
        "beta",
        "0.1",
        "1",
    ]
    assert "found from an earlier run" in shown.err  # the reference, by the second beta
    page = Path("s/report.html").read_text()
    assert "Sweep of" in page
    assert page.count("<h1>") == 3
    assert "<h1>beta-0.1/run</h1>" in page
    assert "<tr><td>0.1</td>" in page
    model = Path("s/beta-0.1/model/model.safetensors")
    made = model.stat().st_mtime_ns
    assert exit_code(*ARGS, "--beta", "0.1,1") == 0
    assert model.stat().st_mtime_ns == made
    assert capsys.readouterr().err.count(": finished earlier") == 2
    assert exit_code(*ARGS, "--beta", "0.1", "--seed", "3") == 2
    assert "made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--beta", "0.1,x"], "numbers with commas between"),
        (["--beta", "0.1,0.1"], "different numbers above 0"),
        (["--beta", "0"], "different numbers above 0"),
        (["--eval-fraction", "0"], "--eval-fraction 0 leaves none"),
    ],
)
def test_a_mistake_is_one_line(
    workplace: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*ARGS, *args) == 2
    assert message in capsys.readouterr().err
