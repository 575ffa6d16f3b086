"""What --data may name: a file, a folder, a data set of the hub."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from mlx_dpo.cli import cli
from mlx_dpo.errors import UsageError
from mlx_dpo.runs import sources
from mlx_dpo.runs.config import RunConfig, resolve
from mlx_dpo.runs.sources import data_files

MODEL = "checkpoints/tiny-sft"
ROW = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n"


def write(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(ROW.replace('"q"', f'"q{number}"'))


@pytest.mark.parametrize("inside", ["", "data/"])
@pytest.mark.parametrize("valid", ["valid.jsonl", "validation.json", None])
def test_a_folder_has_training_and_perhaps_held_out_pairs(
    tmp_path: Path, inside: str, valid: str | None
) -> None:
    names = [f"{inside}train.jsonl", f"{inside}test.jsonl", *([inside + valid] if valid else [])]
    write(tmp_path, *names)
    expected = str(tmp_path / inside / valid) if valid else None
    assert data_files(str(tmp_path)) == (str(tmp_path / inside / "train.jsonl"), expected)


def test_a_file_is_what_it_was_and_held_out_pairs_that_are_named_win(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl", "valid.jsonl", "other.jsonl")
    file = str(tmp_path / "train.jsonl")
    assert data_files(file) == (file, None)
    assert data_files("not/here.jsonl") == ("not/here.jsonl", None)
    own = resolve(None, {"model": MODEL, "data": str(tmp_path)})
    assert (own.data, own.eval_data) == (file, str(tmp_path / "valid.jsonl"))
    named = {"model": MODEL, "data": str(tmp_path), "eval_data": "other.jsonl"}
    assert resolve(None, named).eval_data == "other.jsonl"


def test_a_folder_without_training_pairs_is_one_line_with_the_import(tmp_path: Path) -> None:
    write(tmp_path, "pairs.jsonl")
    with pytest.raises(UsageError, match=r"holds no train\.jsonl; .*: mlx_dpo data import "):
        data_files(str(tmp_path))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Makes a folder the hub's cache of this machine, which has no network."""

    def use(folder: Path) -> None:
        sources._download.cache_clear()
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    yield use
    sources._download.cache_clear()


def hub_cache(folder: Path, *names: str) -> Path:
    """The snapshot of someone/pairs in a hub's cache, where every file is a link to a blob."""
    repository = folder / "datasets--someone--pairs"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    write(repository / "blobs", *(f"{number:064x}" for number, _ in enumerate(names)))
    for number, name in enumerate(names):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(repository / "blobs" / f"{number:064x}")
    return snapshot


def test_settings_keep_a_hub_id_and_each_machine_finds_its_own_copy(
    tmp_path: Path, hub: Callable[[Path], None]
) -> None:
    names = ("data/train.jsonl", "data/valid.jsonl")
    ours, theirs = (hub_cache(tmp_path / name, *names) for name in ("ours", "theirs"))
    hub(tmp_path / "ours")
    settings = resolve(None, {"model": MODEL, "data": "someone/pairs"})
    assert (settings.data, settings.eval_data) == ("someone/pairs", "someone/pairs")
    assert settings.files == tuple(str(ours / name) for name in names)
    (tmp_path / "config.toml").write_text(settings.to_toml())
    hub(tmp_path / "theirs")
    assert RunConfig(**asdict(settings)).files == tuple(str(theirs / name) for name in names)
    assert resolve(tmp_path / "config.toml", {}) == settings


def test_a_data_set_of_the_hub_without_the_files_is_refused(
    tmp_path: Path, hub: Callable[[Path], None]
) -> None:
    snapshot = hub_cache(tmp_path, "train.jsonl")
    hub(tmp_path)
    assert resolve(None, {"model": MODEL, "data": "someone/pairs"}).eval_data is None
    with pytest.raises(UsageError, match=r"someone/others: .* the download from the hub failed"):
        data_files("someone/others")
    with pytest.raises(UsageError, match=r"someone/pairs: holds no valid\.jsonl"):
        _ = RunConfig(data="p.jsonl", eval_data="someone/pairs").files
    (snapshot / "train.jsonl").rename(snapshot / "part-0.jsonl")
    with pytest.raises(UsageError, match=r"mlx_dpo data import someone/pairs --out train\.jsonl"):
        data_files("someone/pairs")


def test_a_run_holds_out_the_folders_own_pairs(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    (tmp_path / "valid.jsonl").write_text(ROW.replace('"q"', '"new"') * 1)
    words = ["train", "--model", MODEL, "--data", str(tmp_path), "--dry-run"]
    result = CliRunner().invoke(cli, [*words, "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "1 pair to train on, 1 held out" in result.output.replace("pairs", "pair")
