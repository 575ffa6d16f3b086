"""Folders of a run: apart, never over anybody's work, and without leftovers."""

import importlib.metadata
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo import __version__, files
from mlx_dpo.convert.sources import find_mlx
from mlx_dpo.errors import DiskError, StoppedError, UsageError
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.folder import (
    CACHES,
    MAX_UNUSED,
    REFERENCES,
    check_folders,
    new_run_dir,
    prune_caches,
)
from mlx_dpo.runs.run import train
from mlx_dpo.training.loss import Metrics
from tests.runs.conftest import ORACLE, StopAfter, WarningScreen, digest, finished, settings

ARTIFACTS = Path(__file__).parent.parent / "g2c" / "artifacts"
NO_PROCESS = 999_999_999  # above every process id
TOKEN = "0123456789ab"  # of a temporary name


def age(entry: Path) -> None:
    """Make an entry look as if nothing had used it for longer than is allowed."""
    then = time.time() - MAX_UNUSED - 60
    os.utime(entry, (then, then))


def test_two_runs_that_begin_together_get_folders_of_their_own(workplace: Path) -> None:
    assert [new_run_dir("m").name for _ in range(3)] == ["m-1", "m-2", "m-3"]


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
    with pytest.raises(UsageError, match="overlap; choose separate folders"):
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


def test_an_existing_output_is_replaced_only_when_a_run_made_it(workplace: Path) -> None:
    Path("mine").mkdir()
    with pytest.raises(UsageError, match="--overwrite"):
        train(settings(out="mine"))
    with pytest.raises(UsageError, match="no run made it"):
        train(settings(out="mine", overwrite=True))
    finished(out="ours", steps=1)
    with pytest.raises(UsageError, match="--overwrite"):
        train(settings(out="ours"))
    finished(out="ours", overwrite=True, steps=1)


def test_without_a_name_of_its_own_a_checkpoint_takes_a_free_one(workplace: Path) -> None:
    """The same command again, or other pairs on the same model, loses nothing."""
    first = Path("checkpoints/model-dpo")
    assert finished(steps=1, eval_fraction=0.0).job.out == first
    before = digest(first / "dpo.json")
    second = finished(steps=2, eval_fraction=0.0)
    assert second.job.out == Path("checkpoints/model-dpo-2")
    assert digest(first / "dpo.json") == before
    assert finished(steps=2, eval_fraction=0.0, overwrite=True).job.out == first


def test_an_output_that_appears_during_training_is_kept_and_so_is_the_training(
    workplace: Path,
) -> None:
    class OutAppears(Screen):
        def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
            Path("out").mkdir(exist_ok=True)
            Path("out/thesis.txt").write_text("years of work")

    how = "written with: mlx_dpo train --resume --run-dir run --out ANOTHER-NAME"
    with pytest.raises(DiskError, match=f"out: appeared in the meantime, .*{how}$"):
        train(settings(run_dir="run", steps=2, out="out"), screen=OutAppears())
    assert Path("out/thesis.txt").read_text() == "years of work"
    with pytest.raises(UsageError, match="out: exists"):
        train(settings(run_dir="run", steps=2, out="out"), resume=True)
    result = train(settings(run_dir="run", steps=2, out="new"), resume=True)
    assert result is not None
    assert result.policy.size
    assert json.loads(Path("run/result.json").read_text())["out"] == "new"
    finished(run_dir="straight", steps=2, out="other")
    assert digest(Path("new/model.safetensors")) == digest(Path("other/model.safetensors"))
    assert digest(Path("run/held_out.json")) == digest(Path("straight/held_out.json"))


@pytest.mark.parametrize("when", ["training", "writing"])
def test_of_two_runs_without_out_at_once_the_second_takes_the_next_free_name(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    first = Path("checkpoints/model-dpo")
    few = {"steps": 1, "eval_fraction": 0.0}

    class OtherRun(WarningScreen):
        def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
            if when == "training":  # with the same settings: its result is no sign that it is ours
                finished(**few, run_dir="other")

    def written(temporary: Path, out: Path, **options: Any) -> None:
        if out == first:
            out.mkdir()
            (out / "thesis.txt").touch()
        write(temporary, out, **options)

    if when == "writing":
        write = files._put_in_place
        monkeypatch.setattr(files, "_put_in_place", written)
    screen = OtherRun()
    result = train(settings(**few, run_dir="run"), screen=screen)
    second = Path("checkpoints/model-dpo-2")
    assert result is not None
    assert result.job.out == second
    assert json.loads(Path("run/result.json").read_text())["out"] == str(second)
    assert str(first) not in (second / "dpo.json").read_text()
    assert "model-dpo-2" in (second / "README.md").read_text()
    assert f"the model is in {second}" in " ".join(screen.warnings)
    assert {entry.name for entry in Path("checkpoints").iterdir()} == {first.name, second.name}
    Path("run/result.json").unlink()  # killed before it was written
    resumed = train(settings(**few, run_dir="run"), resume=True)
    assert resumed is not None
    assert resumed.job.out == second
    assert len(list(Path("checkpoints").iterdir())) == 2


def test_an_output_that_cannot_be_written_is_found_before_training(workplace: Path) -> None:
    with pytest.raises(UsageError, match=r"pairs\.json is a file; --out takes a folder"):
        train(settings(out="pairs.json/out"), screen=StopAfter(0))


def test_a_run_that_was_killed_after_its_model_was_written_resumes_without_overwrite(
    workplace: Path,
) -> None:
    train(settings(run_dir="run", out="out"))
    Path("run/result.json").unlink()
    before = digest(Path("out/model.safetensors"))
    assert train(settings(run_dir="run", out="out"), resume=True) is not None
    assert digest(Path("out/model.safetensors")) == before


def test_a_model_in_runs_is_trained_in_a_folder_beside_it(workplace: Path) -> None:
    shutil.copytree(ORACLE, "runs/otter")
    assert finished(model="runs/otter", steps=1).folder == Path("runs/otter-1")


def test_a_clone_that_is_not_installed_records_its_version(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name == "mlx-dpo":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("mlx-dpo")
    finished(run_dir="run", steps=1)
    assert json.loads(Path("run/environment.json").read_text())["mlx-dpo"] == __version__


def test_cache_entries_that_nothing_used_for_30_days_are_deleted(workplace: Path) -> None:
    prune_caches(ORACLE)  # nothing there yet
    for cache in CACHES:
        for name in ("stale", "fresh"):
            (cache / name).mkdir(parents=True)
            (cache / name / "file").touch()
        age(cache / "stale")
    (REFERENCES / "stale.safetensors").touch()
    age(REFERENCES / "stale.safetensors")
    prune_caches(ORACLE)
    assert [[entry.name for entry in cache.iterdir()] for cache in CACHES] == [["fresh"]] * len(
        CACHES
    )


def test_the_runs_own_model_is_kept_where_it_is_named_by_its_place_in_a_cache(
    workplace: Path,
) -> None:
    model = CACHES[-1] / "otter"
    shutil.copytree(ORACLE, model)
    age(model)
    prune_caches(model)
    assert model.is_dir()


def test_a_run_keeps_the_entries_that_it_uses_and_deletes_the_others(workplace: Path) -> None:
    finished(out="a", steps=1)
    used = [entry for cache in CACHES if cache.is_dir() for entry in cache.iterdir()]
    assert len(used) == 2  # token ids and reference log-probs
    finished(out="b", steps=1, max_length=100, batch_size=3)
    entries = {entry for cache in CACHES if cache.is_dir() for entry in cache.iterdir()}
    assert len(entries) == 4
    for entry in entries:
        age(entry)
    finished(out="c", steps=1)
    assert all(time.time() - entry.stat().st_mtime < MAX_UNUSED for entry in used)
    assert [entry for entry in entries if entry.exists()] == [e for e in entries if e in used]


def test_a_converted_model_that_is_used_again_is_kept(workplace: Path) -> None:
    shutil.copytree(ARTIFACTS, "artifacts")
    converted = find_mlx("artifacts/models/StoryLM-1M-SFT")
    age(converted.parent)
    assert find_mlx("artifacts/models/StoryLM-1M-SFT") == converted
    prune_caches(ORACLE)
    assert converted.is_dir()


def test_what_killed_writers_left_is_gone_after_the_next_run(workplace: Path) -> None:
    """As by SIGKILL in the middle of an export: a model in size."""
    killed = [Path(f"checkpoints/.model-dpo.{TOKEN}.{suffix}") for suffix in ("tmp", "old")]
    killed += [cache / f".entry.{TOKEN}.tmp" for cache in CACHES]
    earlier = [cache / f".entry.{NO_PROCESS}.tmp" for cache in CACHES]  # as earlier versions named
    alive = [cache / f".entry.{os.getppid()}.tmp" for cache in CACHES]
    for folder in (*killed, *earlier, *alive):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
    for folder in earlier:
        age(folder)
    finished(steps=1)
    assert [entry.name for entry in Path("checkpoints").iterdir()] == ["model-dpo"]
    assert not any(folder.exists() for folder in (*killed, *earlier))
    assert all(folder.exists() for folder in alive)


def test_folders_that_differ_by_case_alone_overlap(workplace: Path) -> None:
    """Most Macs' volumes ignore case: there these are one folder, and training would be lost."""
    with pytest.raises(UsageError, match="overlap"):
        check_folders(settings(out="Checkpoints/X", run_dir="checkpoints/x/run"))
    check_folders(settings(out="Checkpoints/X", run_dir="checkpoints/y"))


FINDER = (".DS_Store", "._state.json", ".localized", "Icon\r")


def test_files_that_finder_strews_are_no_part_of_a_run(workplace: Path) -> None:
    options = {"run_dir": "run", "out": "out", "steps": 4, "save_every": 2}
    Path("run").mkdir()
    for name in FINDER:
        (Path("run") / name).touch()
    with pytest.raises(StoppedError):
        train(settings(**options), screen=StopAfter(2))
    for folder in (Path("run"), *Path("run").glob("step-*")):
        for name in FINDER:
            (folder / name).touch()
    assert train(settings(**options), resume=True) is not None
    straight = {**options, "run_dir": "straight", "out": "straight-out"}
    assert train(settings(**straight)) is not None
    assert digest(Path("out/model.safetensors")) == digest(Path("straight-out/model.safetensors"))


class EditsModel(Screen):
    """Edits the files of the model folder once the first step is done."""

    def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
        config = json.loads(Path("model/config.json").read_text())
        Path("model/config.json").write_text(json.dumps({**config, "rope_theta": 77.0}))
        Path("model/chat_template.jinja").write_text("{{ 'other' }}")
        Path("model/tokenizer.json").unlink(missing_ok=True)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_folder_that_is_edited_meanwhile_does_not_change_the_result(
    workplace: Path, method: str
) -> None:
    shutil.copytree(ORACLE, "model")
    names = ["chat_template.jinja", "tokenizer.json"]
    before = {name: digest(Path("model", name)) for name in names}
    train(settings(model="model", out="out", method=method, steps=2), screen=EditsModel())
    assert {name: digest(Path("out", name)) for name in names} == before
    if method == "full":
        config = json.loads(Path("out/config.json").read_text())
        assert (
            config["rope_theta"] == json.loads((ORACLE / "config.json").read_text())["rope_theta"]
        )


def test_an_adapter_whose_base_is_replaced_meanwhile_is_warned_about(workplace: Path) -> None:
    class Replaces(WarningScreen):
        def stepped(self, step: int, metrics: Metrics, timing: Metrics) -> None:
            weights = Path("model/model.safetensors")
            weights.write_bytes(weights.read_bytes() + b" ")

    shutil.copytree(ORACLE, "model")
    screen = Replaces()
    train(settings(model="model", out="out", method="lora", steps=1), screen=screen)
    assert "its weights were changed while the run trained" in " ".join(screen.warnings)


def test_a_run_killed_while_it_wrote_its_settings_begins_again(workplace: Path) -> None:
    Path("run").mkdir()
    half = Path(f"run/.config.toml.{NO_PROCESS}.tmp")
    half.write_text("mod")
    train(settings(run_dir="run", steps=1))
    assert not half.exists()
    assert Path("run/result.json").is_file()
