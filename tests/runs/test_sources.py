"""What --data may name: a file, a folder, a data set of the hub."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_dpo.cli import cli
from mlx_dpo.errors import UsageError
from mlx_dpo.runs.config import resolve
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


def test_a_data_set_of_the_hub_is_read_from_the_cache_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "datasets--someone--pairs"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    write(snapshot, "data/train.jsonl", "data/valid.jsonl")
    settings = resolve(None, {"model": MODEL, "data": "someone/pairs"})
    assert settings.data == str(snapshot / "data" / "train.jsonl")
    assert settings.eval_data == str(snapshot / "data" / "valid.jsonl")
    with pytest.raises(UsageError, match=r"someone/others: .* the download from the hub failed"):
        data_files("someone/others")
    (snapshot / "data" / "train.jsonl").rename(snapshot / "data" / "part-0.jsonl")
    with pytest.raises(UsageError, match=r"mlx_dpo data import someone/pairs --out train\.jsonl"):
        data_files("someone/pairs")


def test_a_run_holds_out_the_folders_own_pairs(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    (tmp_path / "valid.jsonl").write_text(ROW.replace('"q"', '"new"') * 1)
    words = ["train", "--model", MODEL, "--data", str(tmp_path), "--dry-run"]
    result = CliRunner().invoke(cli, [*words, "--run-dir", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "1 pair to train on, 1 held out" in result.output.replace("pairs", "pair")
