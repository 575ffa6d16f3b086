"""Converted checkpoints that are kept: never trusted blindly, shared by runs that begin at once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.convert import store as converted
from mlx_dpo.convert.conversion import convert
from mlx_dpo.convert.store import converted_once
from tests import g2c


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    shutil.copytree(g2c.FOLDER / "artifacts", tmp_path / "artifacts")
    return tmp_path / "artifacts" / "models" / g2c.ARTIFACT.name


@pytest.fixture(autouse=True)
def _another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call below stands for a process of its own, which has compared nothing yet."""

    class Forgets(dict[object, Path]):
        def __setitem__(self, key: object, value: Path) -> None:
            pass

    monkeypatch.setattr(converted, "_found", Forgets())


def flip_a_bit(entry: Path) -> None:
    weights = entry / "model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def lose_the_config(entry: Path) -> None:
    (entry / "model/config.json").unlink()


def lose_the_manifest(entry: Path) -> None:
    (entry / "MANIFEST.json").unlink()


def gain_a_template(entry: Path) -> None:
    (entry / "model/chat_template.jinja").write_text("{{ 'other' }}")


@pytest.mark.parametrize(
    "damage", [flip_a_bit, lose_the_config, lose_the_manifest, gain_a_template]
)
def test_a_damaged_entry_is_made_again(
    artifact: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    model = converted_once(artifact, tmp_path / "store")
    content = {file.name: file.read_bytes() for file in model.iterdir()}
    damage(model.parent)
    assert converted_once(artifact, tmp_path / "store") == model
    assert {file.name: file.read_bytes() for file in model.iterdir()} == content


def test_another_version_of_the_converter_makes_another_entry_and_removes_the_old(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    other = shutil.copytree(artifact, artifact.with_name("other"))
    of_another = converted_once(other, store)
    old = converted_once(artifact, store)
    monkeypatch.setattr(converted, "CONVERSION_VERSION", "next")
    new = converted_once(artifact, store)
    assert new != old
    assert {entry.name for entry in store.iterdir()} == {of_another.parent.name, new.parent.name}


def test_of_two_first_runs_at_once_the_second_takes_what_the_first_made(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list[Path]()

    def second(*arguments: Any) -> None:
        with monkeypatch.context() as other_process:
            other_process.setattr(converted, "convert", convert)
            first.append(converted_once(artifact, tmp_path / "store"))
        convert(*arguments)

    monkeypatch.setattr(converted, "convert", second)
    assert [converted_once(artifact, tmp_path / "store")] == first
    assert [entry.name for entry in (tmp_path / "store").iterdir()] == [first[0].parent.name]


def test_every_file_that_goes_along_decides_the_entry(artifact: Path, tmp_path: Path) -> None:
    before = converted_once(artifact, tmp_path / "store")
    (artifact / "LICENSE").write_text("MIT")
    assert converted_once(artifact, tmp_path / "store") != before
