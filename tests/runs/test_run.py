"""A run from settings to a checkpoint, and its continuation."""

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.errors import DataError, DiskError, StoppedError, UsageError
from mlx_dpo.models.parameters import load_arrays, save_arrays
from mlx_dpo.runs.callbacks import FLOOR_WINDOW, RewardWatch, Screen
from mlx_dpo.runs.folder import new_run_dir
from mlx_dpo.runs.run import RunResult, train
from mlx_dpo.training.loss import Metrics
from tests.runs.conftest import ORACLE, settings


def finished(**changes: object) -> RunResult:
    result = train(settings(**changes))
    assert result is not None
    return result


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def metrics(run: str) -> list[dict[str, float]]:
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


class StopAfter(Screen):
    """Sends this process a signal once `step` is done."""

    def __init__(self, step: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.step = step
        self.number = number

    def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


def test_a_run_leaves_a_folder_that_mlx_lm_loads_and_generates_from(workplace: Path) -> None:
    import mlx_lm

    result = finished(out="out")
    model, tokenizer = mlx_lm.load("out")
    assert isinstance(mlx_lm.generate(model, tokenizer, "Hello", max_tokens=3), str)
    ids = mx.array([[1, 2, 3]])
    assert mx.array_equal(model(ids), result.job.policy(ids))


def test_a_run_keeps_its_settings_split_metrics_and_results(workplace: Path) -> None:
    result = finished(run_dir="run")
    names = {p.name for p in Path("run").iterdir()}
    assert names >= {"config.toml", "environment.json", "split.json", "metrics.jsonl"}
    assert names >= {"timings.jsonl", "held_out.json", "result.json", "step-000006", "step-000008"}
    split = json.loads(Path("run/split.json").read_text())
    assert sorted(map(int, split["train"] + split["held_out"])) == list(range(1, 15))
    assert len(metrics("run")) == 8
    record = json.loads(Path(result.job.out, "dpo.json").read_text())
    assert record["steps"] == 8
    assert record["held_out"]["accuracy"] == pytest.approx(
        np.mean(np.diff(result.policy - result.reference, axis=0) < 0)
    )


def test_the_sft_checkpoint_is_byte_identical_after_training(workplace: Path) -> None:
    before = {p.name: digest(p) for p in ORACLE.iterdir()}
    finished()
    assert {p.name: digest(p) for p in ORACLE.iterdir()} == before


def test_cached_and_copied_reference_give_the_same_trajectory(workplace: Path) -> None:
    finished(run_dir="cached", reference="cached", out="a")
    finished(run_dir="copy", reference="copy", out="b")
    for cached, copy in zip(metrics("cached"), metrics("copy"), strict=True):
        assert cached["loss"] == pytest.approx(copy["loss"], abs=2e-5)
        assert cached["reward_margin"] == pytest.approx(copy["reward_margin"], abs=2e-4)


def test_a_copied_reference_starts_at_exactly_log_2_with_zero_rewards(workplace: Path) -> None:
    finished(run_dir="run", reference="copy")
    first = metrics("run")[0]
    assert first["loss"] == np.float32(np.log(2))
    assert first["chosen_reward"] == first["rejected_reward"] == first["accuracy"] == 0.0


def test_a_second_run_on_the_same_model_and_pairs_reuses_the_reference(workplace: Path) -> None:
    passes = []

    class Count(Screen):
        def scoring(self, done: int, total: int) -> None:
            passes.append(done)

    train(settings(out="a"), screen=Count())
    first = len(passes)
    train(settings(out="b", beta=0.3), screen=Count())
    assert 0 < first == len(passes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_and_resumed_run_is_byte_equal_to_a_straight_one(
    workplace: Path, number: signal.Signals
) -> None:
    finished(run_dir="straight", out="a")
    with pytest.raises(StoppedError, match="--resume --run-dir broken"):
        train(settings(run_dir="broken", out="b"), screen=StopAfter(4, number))
    assert not Path("b").exists()
    train(settings(run_dir="broken", out="b"), resume=True)
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    for name in ("metrics.jsonl", "held_out.json"):
        assert digest(Path("straight", name)) == digest(Path("broken", name))
    for name in ("weights", "optimizer"):
        file = f"step-000006/{name}.safetensors"
        assert digest(Path("straight", file)) == digest(Path("broken", file))


def test_resume_cuts_what_was_logged_after_the_checkpoint(workplace: Path) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 123}\n{"step": 6, "lo')  # a killed run's last words
    train(settings(run_dir="run"), resume=True)
    assert [row["step"] for row in metrics("run")] == list(range(8))
    assert all(row["loss"] < 100 for row in metrics("run"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"beta": 0.2}, "beta"),
        ({"steps": 9}, "steps"),
        ({"learning_rate": 2e-3}, "learning rate"),
        ({"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_resume_refuses_another_trajectory_and_names_the_difference(
    workplace: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    with pytest.raises(UsageError, match=f"another {named}"):
        train(settings(run_dir="run", **changes), resume=True)


def test_resume_refuses_other_data(workplace: Path) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    rows = json.loads(Path("pairs.json").read_text())
    Path("pairs.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(UsageError, match="another data"):
        train(settings(run_dir="run"), resume=True)


def test_resume_without_a_checkpoint_starts_from_step_0(workplace: Path) -> None:
    resumed = []

    class Note(Screen):
        def resumed(self, step: int) -> None:
            resumed.append(step)

    train(settings(run_dir="run"), resume=True, screen=Note())
    assert resumed == [0]
    assert len(metrics("run")) == 8


def test_only_the_newest_two_checkpoints_are_kept(workplace: Path) -> None:
    finished(run_dir="run", save_every=1)
    found = sorted(p.name for p in Path("run").glob("step-*"))
    assert found == ["step-000007", "step-000008"]


def test_a_dry_run_writes_nothing(workplace: Path) -> None:
    assert train(settings(), dry_run=True) is None
    assert sorted(p.name for p in workplace.iterdir()) == ["pairs.json"]


def test_an_existing_output_is_replaced_only_when_a_run_made_it(workplace: Path) -> None:
    Path("mine").mkdir()
    with pytest.raises(UsageError, match="--overwrite"):
        train(settings(out="mine"))
    with pytest.raises(UsageError, match="no run made it"):
        train(settings(out="mine", overwrite=True))
    finished(out="ours")
    with pytest.raises(UsageError, match="--overwrite"):
        train(settings(out="ours"))
    finished(out="ours", overwrite=True)


@pytest.mark.parametrize(
    "places",
    [
        {"out": str(ORACLE), "overwrite": True},
        {"run_dir": str(ORACLE)},
        {"run_dir": str(ORACLE / "run")},
        {"run_dir": "x", "out": "x"},
        {"run_dir": "x/run", "out": "x"},
        {"run_dir": "x", "out": "x/out"},
    ],
)
def test_model_run_and_output_never_write_into_one_another(
    workplace: Path, places: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match="overlap; the three folders must be apart"):
        train(settings(**places))
    assert not (ORACLE / ".lock").exists()
    assert not (ORACLE / "run").exists()


def test_a_folder_that_no_run_made_is_not_taken_for_a_run(workplace: Path) -> None:
    Path("mine").mkdir()
    Path("mine/metrics.jsonl").write_text("precious")
    for resume in (False, True):
        with pytest.raises(UsageError, match="not empty, and no run made it"):
            train(settings(run_dir="mine"), resume=resume)
    assert Path("mine/metrics.jsonl").read_text() == "precious"


def test_an_output_that_appears_during_training_is_kept_and_so_is_the_training(
    workplace: Path,
) -> None:
    class Thief(Screen):
        def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
            Path("out").mkdir(exist_ok=True)
            Path("out/thesis.txt").write_text("years of work")

    with pytest.raises(DiskError, match="out: appeared in the meantime"):
        train(settings(run_dir="run", out="out"), screen=Thief())
    assert Path("out/thesis.txt").read_text() == "years of work"
    shutil.rmtree("out")
    result = train(settings(run_dir="run", out="out"), resume=True)
    assert result is not None
    assert result.policy.size
    finished(run_dir="straight", out="other")
    assert digest(Path("out/model.safetensors")) == digest(Path("other/model.safetensors"))
    assert digest(Path("run/held_out.json")) == digest(Path("straight/held_out.json"))


def test_an_output_that_cannot_be_written_is_found_before_training(workplace: Path) -> None:
    with pytest.raises(UsageError, match=r"pairs\.json is a file; --out takes a folder"):
        train(settings(out="pairs.json/out"), screen=StopAfter(0))


def test_a_refused_resume_leaves_the_run_as_it_was(workplace: Path) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    with pytest.raises(UsageError, match="another beta"):
        train(settings(run_dir="run", beta=0.2), resume=True)
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before


def other_model(**config: object) -> str:
    """The oracle's model with another config.json."""
    shutil.copytree(ORACLE, "model")
    settings_file = Path("model/config.json")
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | config))
    return "model"


def test_the_same_weights_under_another_config_are_another_model(workplace: Path) -> None:
    finished(out="a")  # leaves reference log-probs behind
    changed = other_model(rope_theta=500.0)
    passes = []

    class Count(Screen):
        def scoring(self, done: int, total: int) -> None:
            passes.append(done)

    with pytest.raises(StoppedError):
        train(settings(model=changed, run_dir="run", out="b"), screen=StopAfter(4))
    assert train(settings(model=changed, steps=2, out="c"), screen=Count()) is not None
    assert passes == []  # its own log-probs, from the run above
    shutil.copy(ORACLE / "config.json", "model/config.json")
    with pytest.raises(UsageError, match="another model"):
        train(settings(model=changed, run_dir="run", out="b"), resume=True)


def test_a_tokenizer_that_is_not_the_models_is_refused_before_any_forward(
    workplace: Path,
) -> None:
    model = other_model(vocab_size=300)
    arrays = load_arrays(Path("model/model.safetensors"))
    arrays["model.embed_tokens.weight"] = arrays["model.embed_tokens.weight"][:300]
    save_arrays(Path("model/model.safetensors"), arrays)
    with pytest.raises(UsageError, match="the tokenizer is not this model's"):
        train(settings(model=model))


def test_rows_longer_than_learned_positions_are_refused(workplace: Path) -> None:
    gpt2 = str(ORACLE.parent.parent / "gpt2" / "model")
    rows = [dict(row, chosen="otter " * 1200) for row in json.loads(Path("pairs.json").read_text())]
    Path("pairs.json").write_text(json.dumps(rows))
    with pytest.raises(UsageError, match=r"has 1024 positions.* pass --max-length 1024"):
        train(settings(model=gpt2, max_length=4096))


def damage(name: str, change: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda checkpoint: change(checkpoint / name)


def emptied(file: Path) -> None:
    file.write_text("{}")


def without_one_tensor(file: Path) -> None:
    arrays = load_arrays(file)
    arrays.pop(min(arrays))
    save_arrays(file, arrays)


CHANGES = [
    damage("state.json", Path.unlink),
    damage("state.json", emptied),
    damage("MANIFEST.json", emptied),
    damage("weights.safetensors", Path.unlink),
    damage("weights.safetensors", without_one_tensor),
    damage("optimizer.safetensors", without_one_tensor),
    damage("weights.safetensors", lambda file: os.truncate(file, 1000)),
    damage("notes.txt", Path.touch),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    workplace: Path, change: Callable[[Path], None]
) -> None:
    said = []

    class Note(Screen):
        def warned(self, text: str) -> None:
            said.append(text)

    finished(run_dir="straight", out="a")
    with pytest.raises(StoppedError):
        train(settings(run_dir="run", out="b"), screen=StopAfter(4))
    change(Path("run/step-000005"))
    assert train(settings(run_dir="run", out="b"), resume=True, screen=Note()) is not None
    assert re.match(r"run/step-000005: damaged: .*going on from run/step-000003", said[0])
    assert not Path("run/step-000005").exists()
    assert digest(Path("a/model.safetensors")) == digest(Path("b/model.safetensors"))
    assert digest(Path("straight/metrics.jsonl")) == digest(Path("run/metrics.jsonl"))


def test_a_run_without_any_whole_checkpoint_is_refused_and_not_begun_anew(workplace: Path) -> None:
    with pytest.raises(StoppedError):
        train(settings(run_dir="run"), screen=StopAfter(4))
    for name in ("step-000003", "step-000005"):
        CHANGES[0](Path("run", name))
    with pytest.raises(UsageError, match=r"step-000005: damaged: .*no checkpoint of this run is"):
        train(settings(run_dir="run"), resume=True)


def test_two_runs_that_begin_together_get_folders_of_their_own(workplace: Path) -> None:
    assert [new_run_dir("m").name for _ in range(3)] == ["m-1", "m-2", "m-3"]


def test_unusable_weights_end_the_run_before_training(workplace: Path) -> None:
    model = other_model()
    arrays = load_arrays(Path("model/model.safetensors"))
    arrays["model.norm.weight"] = arrays["model.norm.weight"] * float("nan")
    save_arrays(Path("model/model.safetensors"), arrays)
    with pytest.raises(UsageError, match=r"model\.norm\.weight holds NaN or infinite values"):
        train(settings(model=model))


def test_held_out_pairs_in_a_file_of_their_own_must_be_new(workplace: Path) -> None:
    rows = json.loads(Path("pairs.json").read_text())
    Path("eval.json").write_text(json.dumps(rows[:2]))
    with pytest.raises(DataError, match="held-out pairs must be new"):
        train(settings(eval_data="eval.json"))


def test_no_pair_left_to_train_on_is_an_error_with_the_reason(workplace: Path) -> None:
    with pytest.raises(DataError, match="prompt fills the length"):
        train(settings(max_length=4))


def rewards(chosen: float, rejected: float) -> Metrics:
    return {"chosen_reward": chosen, "rejected_reward": rejected}


def test_both_rewards_below_the_floor_for_a_while_are_warned_about_once() -> None:
    watch = RewardWatch()
    found = [watch.judge(step, rewards(-1.5, -3.0)) for step in range(2 * FLOOR_WINDOW)]
    warned = [step for step, text in enumerate(found) if text is not None]
    assert warned == [FLOOR_WINDOW - 1]
    text = found[FLOOR_WINDOW - 1]
    assert text is not None
    assert "chosen reward is -1.50 and the rejected -3.00" in text
    assert "Lower --learning-rate or raise --beta" in text


def test_a_falling_rejected_reward_alone_is_no_collapse() -> None:
    watch = RewardWatch()
    assert not any(watch.judge(step, rewards(-0.9, -30.0)) for step in range(2 * FLOOR_WINDOW))
