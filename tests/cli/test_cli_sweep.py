"""A sweep trains once for each beta, keeps what is finished, and sets the results side by side."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import NonFiniteError, StoppedError
from mlx_dpo.insight import sweep
from mlx_dpo.preferences import store
from mlx_dpo.runs import defaults, plan, run
from mlx_dpo.runs.config import RunConfig, read_settings
from tests.cli.test_cli import exit_code
from tests.runs.conftest import ORACLE, dated_model

ARGS = [
    *("sweep", "--model", str(ORACLE), "--data", "pairs.json", "--steps", "2", "--run-dir", "s"),
    *("--learning-rate", "1e-3", "--num-prompts", "2"),
]


def test_each_beta_is_trained_once_and_shown(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*ARGS, "--beta", "0.1,1", "-v") == 0
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
    assert page.count("<h1>") == 4  # the sweep, its runs together, and each
    assert "<h1>beta 0.1</h1>" in page
    assert re.search("<tr[^>]*><td>0.1</td>", page)
    advice = "No beta is surely better than chance."  # of two steps
    assert advice in page
    assert advice in shown.out
    model = Path("s/beta-0.1/model/model.safetensors")
    made = model.stat().st_mtime_ns
    assert exit_code(*ARGS, "--beta", "0.1,1") == 0
    assert model.stat().st_mtime_ns == made
    assert capsys.readouterr().err.count(": finished earlier") == 2
    assert exit_code(*ARGS, "--beta", "0.1", "--seed", "3") == 2
    assert "made with other settings" in capsys.readouterr().err


def test_a_sweep_keeps_the_date_of_its_first_run(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = [*ARGS, "--model", dated_model()]
    assert exit_code(*args, "--beta", "0.1") == 0
    monkeypatch.setattr(defaults, "today", lambda: "2031-01-01")
    assert exit_code(*args, "--beta", "0.1,1") == 0
    assert capsys.readouterr().err.count(": finished earlier") == 1
    first, second = (
        read_settings(Path(f"s/beta-{b}/run/config.toml"))["date"] for b in ("0.1", "1")
    )
    assert first == second


def test_what_was_measured_is_not_measured_again_unless_it_is_asked_otherwise(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code(*ARGS, "--beta", "0.1,1") == 0
    first = capsys.readouterr()
    assert first.err.count("answers to 2 held-out prompts") == 2
    Path("s/beta-1/run/drift.json").write_text("torn")
    assert exit_code(*ARGS, "--beta", "0.1,1") == 0
    second = capsys.readouterr()
    assert "beta-1: answers to 2" in second.err
    assert "beta-0.1: answers" not in second.err
    assert second.out == first.out
    assert exit_code(*ARGS, "--beta", "0.1,1", "--num-prompts", "1") == 0
    assert capsys.readouterr().err.count("answers to 1 held-out prompts") == 2
    monkeypatch.setattr(sweep, "open_model", None)  # nothing is loaded where all is known
    assert exit_code(*ARGS, "--beta", "0.1,1", "--num-prompts", "1") == 0


def test_a_beta_that_is_not_finite_is_told_and_the_others_go_on(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = run.train

    def fails_at_small_beta(config: RunConfig, **options: Any) -> object:
        if config.beta < 1:
            raise NonFiniteError("loss is nan at step 1")
        return train(config, **options)

    monkeypatch.setattr(run, "train", fails_at_small_beta)
    assert exit_code(*ARGS, "--beta", "0.1,1") == 5
    shown = capsys.readouterr()
    assert "0.1  not finite: loss is nan at step 1" in shown.out
    assert "1 of 2 betas did not finish" in shown.err
    page = Path("s/report.html").read_text()
    assert "Not finite: loss is nan" in page
    assert re.search("<tr[^>]*><td>1</td>", page)
    assert exit_code(*ARGS, "--beta", "0.1") == 5
    assert "no beta finished" in capsys.readouterr().err


def test_a_sweep_that_does_not_fit_its_memory_budget_trains_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().iterdir())
    assert exit_code(*ARGS, "--memory-budget", "10KB") == 4
    err = capsys.readouterr().err
    assert "no setting would fit" in err
    planning, refusal = err.splitlines()
    assert planning.startswith("planning memory")
    assert refusal.startswith("mlx_dpo: ")
    # The token ids stay, for another try.
    assert sorted(Path().iterdir()) == [*before, Path("runs")]
    assert [path.name for path in Path("runs").iterdir()] == [store.FOLDER.name]


def test_a_sweep_solves_its_memory_budget_once_and_goes_on_with_the_solution(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, make_plan = run.train, plan.make_plan
    plans: list[RunConfig] = []

    def planned(config: RunConfig, **options: Any) -> plan.Plan:
        plans.append(config)
        return make_plan(config, **options)

    def stops_before_the_second(config: RunConfig, **options: Any) -> object:
        if config.beta == 1:
            raise StoppedError("stopped")
        return train(config, **options)

    monkeypatch.setattr(plan, "make_plan", planned)
    peak = make_plan(RunConfig(model=str(ORACLE), data="pairs.json", steps=2)).prediction.total
    budget = f"{peak * 4 // 5 // 1024}KB"
    args = [*ARGS, "--beta", "0.1,1", "--batch-size", "4", "--memory-budget", budget]
    with monkeypatch.context() as patched:
        patched.setattr(run, "train", stops_before_the_second)
        assert exit_code(*args) == 75
    assert "memory: --checkpoint-layers" in capsys.readouterr().err
    assert exit_code(*args) == 0
    assert len(plans) == 1
    assert "beta 0.1 (1 of 2): finished earlier" in capsys.readouterr().err
    for beta in ("0.1", "1"):
        config = tomllib.loads(Path(f"s/beta-{beta}/run/config.toml").read_text())
        assert config["checkpoint_layers"] is True
    assert exit_code(*args, "--dtype", "bfloat16") == 2
    assert "made with other settings" in capsys.readouterr().err
    assert exit_code(*args[:-1], "10KB") == 4
    assert "no setting would fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--beta", "0.1,x"], "numbers with commas between"),
        (["--beta", "0.1,0.1"], "numbers above 0 that differ"),
        (["--beta", "0.1,0.1000000001"], "numbers above 0 that differ"),  # one folder for both
        (["--beta", "0"], "numbers above 0 that differ"),
        (["--eval-fraction", "0"], "--eval-fraction 0 leaves none"),
    ],
)
def test_a_mistake_is_one_line(
    workplace: Path, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*ARGS, *args) == 2
    assert message in capsys.readouterr().err
