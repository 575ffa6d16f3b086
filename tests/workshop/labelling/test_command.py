"""`mlx_dpo data label` where it can't start: one line, the right code, nothing written."""

import socket
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from mlx_dpo.workshop.journal import Journal
from mlx_dpo.workshop.labelling.book import journal_path
from tests.cli.test_cli import exit_code


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def label(*args: str) -> int:
    return exit_code("data", "label", "--no-open", *args)


def test_a_missing_package_is_named_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_none(name: str) -> ModuleSpec | None:
        return None

    # The module, and not the command of the same name in its package.
    monkeypatch.setattr(sys.modules["mlx_dpo.cli.data.label"], "find_spec", find_none)
    assert label() == 2
    assert "pip install 'mlx-dpo[label]'" in capsys.readouterr().err


def test_files_are_checked_before_anything_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert label("absent.jsonl") == 2
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"answers": []}\n')
    assert label("bad.jsonl") == 3
    assert "bad.jsonl:2:1: missing-key" in capsys.readouterr().err
    assert [file.name for file in Path().iterdir()] == ["bad.jsonl"]


def test_a_port_that_is_taken_and_a_book_that_is_open_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert label("--port", str(port)) == 2
        assert f"--port {port}: Address already in use" in capsys.readouterr().err
    journal = Journal(journal_path(Path("preferences.jsonl")))
    assert label() == 6
    assert "in use by another mlx_dpo" in capsys.readouterr().err
    journal.close()
