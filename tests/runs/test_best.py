"""--keep best and --patience: held-out pairs select a step, and a resumed run selects the same."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from mlx_dpo.errors import StoppedError, UsageError
from mlx_dpo.models.parameters import load_arrays
from mlx_dpo.runs.best import BestStep
from mlx_dpo.runs.callbacks import Evaluate, Screen
from mlx_dpo.runs.checkpoint import Checkpoints
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.finished import write_finished
from mlx_dpo.runs.run import RunResult, train
from tests.runs.conftest import ROWS, StopAfter, WarningScreen, digest, new_workplace, settings

STEPS = 9


@pytest.fixture
def turning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs whose held-out loss falls, and rises again: one of four held-out pairs is reversed."""
    folder = new_workplace(tmp_path, monkeypatch)
    held_out = [*ROWS[1:4], {**ROWS[0], "chosen": ROWS[0]["rejected"], "rejected": "Yes."}]
    held_out[-1]["rejected"] = ROWS[0]["chosen"]
    (folder / "pairs.json").write_text(json.dumps(ROWS[4:]))
    (folder / "held.json").write_text(json.dumps(held_out))
    return folder


def turning_run(name: str, screen: Screen | None = None, **changes: Any) -> RunResult:
    options: dict[str, Any] = {
        "learning_rate": 1e-4,
        "steps": STEPS,
        "eval_data": "held.json",
        "save_every": 2,
    }
    options |= {"run_dir": name, "out": f"{name}-out", "eval_every": None}
    resume = changes.pop("resume", False)
    result = train(settings(**{**options, **changes}), screen=screen, resume=resume)
    assert result is not None
    return result


def losses(run: str) -> list[float]:
    rows = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return [row["held_out"]["loss"] for row in rows if "held_out" in row]


def assert_exported(run: str, step: int) -> None:
    """The finished model has exactly the weights of that step's checkpoint."""
    exported = load_arrays(Path(f"{run}-out/model.safetensors"))
    kept = load_arrays(Path(run, f"step-{step:06d}/weights.safetensors"))
    for name, array in kept.items():
        assert np.array_equal(np.array(array), np.array(exported[name])), name


def test_the_best_evaluation_is_exported_and_the_last_step_stays(turning: Path) -> None:
    result = turning_run("run", keep="best")
    best = int(np.argmin(losses("run"))) + 1
    assert 1 < best < STEPS - 3  # it would have been deleted otherwise
    assert (result.kept.step, result.kept.made, result.kept.by) == (best, STEPS, "loss")
    assert_exported("run", best)
    found = {p.name for p in Path("run").glob("step-*")}
    assert found == {f"step-{step:06d}" for step in (best, STEPS - 1, STEPS)}
    # Scores, record and verdict are those of the step that is kept.
    written = json.loads(Path("run/result.json").read_text())
    assert written["kept"]["value"] == losses("run")[best - 1]
    record = json.loads(Path("run-out/dpo.json").read_text())
    assert record["steps"] == best
    assert record["held_out"]["loss"] == pytest.approx(losses("run")[best - 1], abs=1e-6)
    assert written["verdict"]["outcome"] != "overfitted"


def test_without_keep_best_the_last_step_is_exported_and_called_overfitted(turning: Path) -> None:
    result = turning_run("run", eval_every=1)
    assert (result.kept.step, result.kept.by) == (STEPS, "last")
    assert_exported("run", STEPS)
    assert result.verdict.outcome == "overfitted"
    assert "--keep best" in result.verdict.advice


@pytest.mark.parametrize("stopped_after", [1, 5])
def test_a_resumed_run_selects_and_ends_as_a_straight_one(
    turning: Path, stopped_after: int
) -> None:
    options: dict[str, Any] = {"keep": "best", "patience": 3}
    straight = turning_run("straight", **options)
    with pytest.raises(StoppedError):
        turning_run("broken", StopAfter(stopped_after), **options)
    broken = turning_run("broken", resume=True, **options)
    assert straight.kept == broken.kept
    assert straight.kept.step < straight.kept.made < STEPS
    for file in ("metrics.jsonl", "held_out.json"):
        assert digest(Path("straight", file)) == digest(Path("broken", file))
    weights = "model.safetensors"
    assert digest(Path("straight-out", weights)) == digest(Path("broken-out", weights))


def test_patience_ends_a_run_without_changing_the_steps_before(turning: Path) -> None:
    class EndScreen(WarningScreen):
        def ended_early(self, text: str) -> None:
            self.warnings.append(text)

    screen = EndScreen()
    short = turning_run("short", screen, patience=2)
    turning_run("long", eval_every=1)
    best = int(np.argmin(losses("short"))) + 1
    assert short.kept.made == short.kept.step == best + 2
    assert f"stopped early after step {best + 2} of {STEPS}" in " ".join(screen.warnings)
    # Also the learning rate, which depends on the steps that were planned.
    lines = Path("short/metrics.jsonl").read_text().splitlines()
    assert lines == Path("long/metrics.jsonl").read_text().splitlines()[: len(lines)]
    assert Path("short", f"step-{best + 2:06d}").is_dir()


def test_a_run_killed_before_its_result_ends_early_again(
    turning: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_once(*arguments: Any) -> None:
        monkeypatch.setattr("mlx_dpo.runs.run.write_finished", write_finished)
        raise KeyboardInterrupt

    monkeypatch.setattr("mlx_dpo.runs.run.write_finished", killed_once)
    with pytest.raises(KeyboardInterrupt):
        turning_run("run", patience=2, keep="best")
    rows = Path("run/metrics.jsonl").read_bytes()
    result = turning_run("run", patience=2, keep="best", resume=True)
    assert Path("run/metrics.jsonl").read_bytes() == rows
    assert_exported("run", result.kept.step)


def test_a_damaged_best_checkpoint_is_named_and_the_last_step_exported(
    turning: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = BestStep.kept

    def damaging(self: BestStep, trainer: Any) -> Any:
        (best,) = sorted(Path("run").glob("step-*"))[:1]
        (best / "weights.safetensors").write_bytes(b"")
        return original(self, trainer)

    monkeypatch.setattr(BestStep, "kept", damaging)
    screen = WarningScreen()
    result = turning_run("run", screen, keep="best")
    assert "missing or damaged: the last step is kept" in " ".join(screen.warnings)
    assert (result.kept.step, result.kept.by) == (STEPS, "last")
    assert_exported("run", STEPS)


@pytest.mark.parametrize("changes", [{"keep": "last"}, {"best_by": "accuracy"}, {"eval_every": 2}])
def test_a_resumed_run_may_not_select_otherwise(turning: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(StoppedError):
        turning_run("run", StopAfter(2), keep="best")
    with pytest.raises(UsageError, match="cannot continue with another"):
        turning_run("run", resume=True, **{"keep": "best", **changes})


@pytest.mark.parametrize("option", [{"keep": "best"}, {"patience": 1}])
def test_a_selection_without_held_out_pairs_is_refused(
    turning: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="holds out none: raise --eval-fraction"):
        turning_run("run", eval_data=None, eval_fraction=0.0, **option)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("by", "figures", "best"),
    [
        ("loss", [0.6, 0.5, 0.5, 0.7], 1),  # the first of equals
        ("accuracy", [0.6, 0.5, 0.8, 0.7], 2),
        ("loss", [float("nan"), 0.5, 0.6], 1),
        ("accuracy", [0.6], 0),
    ],
)
def test_the_best_is_the_lowest_loss_or_the_highest_accuracy(
    by: str, figures: list[float], best: int
) -> None:
    history = [(step, {by: figure}) for step, figure in enumerate(figures)]
    evaluate = cast("Evaluate", SimpleNamespace(history=history))
    trainer = cast("Any", SimpleNamespace(step=len(figures), max_steps=9, is_done=True))
    checkpoints = Checkpoints(Path())
    config = RunConfig(keep="best", best_by=by)
    BestStep(config, evaluate, checkpoints, Screen()).at_start(trainer)
    assert checkpoints.best == best + 1
