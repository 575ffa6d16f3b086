"""Digests of a folder that other programs read too."""

import json
from pathlib import Path

import pytest

from mlx_dpo.errors import UsageError
from mlx_dpo.manifest import DIGESTS, check_digests, write_digests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    (path / "more").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md", "more/chat.jinja"):
        (path / name).write_text(f"This is {name}.")
    write_digests(path)
    return path


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "more/chat.jinja"])
def test_a_file_that_was_changed_or_is_gone_is_refused_by_name(folder: Path, name: str) -> None:
    check_digests(folder)
    text = (folder / name).read_text()
    (folder / name).write_text(text.replace("This", "this"))
    with pytest.raises(UsageError, match=rf"{name}: changed since .* delete .*{DIGESTS}"):
        check_digests(folder)
    (folder / name).write_text(text)
    check_digests(folder)
    (folder / name).unlink()
    with pytest.raises(UsageError, match=rf"{name}: gone since"):
        check_digests(folder)
    (folder / DIGESTS).unlink()
    check_digests(folder)


def test_people_may_add_files_and_edit_the_readme(folder: Path) -> None:
    (folder / "README.md").write_text("Mine.")
    (folder / "notes.txt").write_text("Also mine.")
    check_digests(folder)


def test_weights_are_left_out_where_only_the_rest_is_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    check_digests(folder, weights=False)


@pytest.mark.parametrize("text", ["", "[1]", "7", '{"config.json": 1}', '{"../secret": "0"}'])
def test_digests_that_were_not_written_here_refuse_the_folder(folder: Path, text: str) -> None:
    (folder.parent / "secret").write_text("outside")
    (folder / DIGESTS).write_text(text)
    with pytest.raises(UsageError, match="since the folder was written"):
        check_digests(folder)


def test_what_is_written_names_every_file_once(folder: Path) -> None:
    names = ["config.json", "model.safetensors", "more/chat.jinja"]
    assert list(json.loads((folder / DIGESTS).read_text())) == names
