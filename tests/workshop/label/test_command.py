"""`mlx_dpo data label` where it can't start: one line, the right code, nothing written."""

import json
import signal
import socket
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from mlx_dpo.extras import to_install
from mlx_dpo.workshop.candidates import load_candidates
from mlx_dpo.workshop.journal import Journal
from mlx_dpo.workshop.label.book import BAD, SKIP, Book, journal_path, tasks_of
from tests.cli.test_cli import exit_code
from tests.workshop.label.served import Served


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
    assert to_install("label") in capsys.readouterr().err


def test_files_are_checked_before_anything_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert label("absent.jsonl") == 2
    Path("bad.jsonl").write_text('{"prompt": "a"}\n{"answers": []}\n')
    assert label("bad.jsonl") == 3
    assert "bad.jsonl:2:1: missing-key" in capsys.readouterr().err
    assert [file.name for file in Path().iterdir()] == ["bad.jsonl"]


def test_a_file_that_is_not_there_is_only_that(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("absent.jsonl", "absent.txt"):
        assert label(name) == 2
        assert capsys.readouterr().err == (
            f"mlx_dpo: {name}: no such file; check the name and the folder\n"
        )


def test_the_lines_of_a_text_file_are_prompts_to_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_dpo.workshop.label.server.serve", lambda book, *_, **__: None)
    Path("prompts.txt").write_text("I am late.\n\n  Is it far?\nI am late.\n")
    assert label("prompts.txt") == 0
    assert "0 pairs in preferences.jsonl; 2 tasks to do." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("origins", "command", "note"),
    [
        (["a b"], "train --data mine.jsonl --model 'a b'", ""),
        ([("base", "lora")], "train --data mine.jsonl --model base --adapter lora", ""),
        (["a", "b"], "train --data mine.jsonl", "one of those that gave the answers (a, b)"),
        (["a", None], "train --data mine.jsonl", "one of those that gave the answers (a)"),
        ([None], "train --data mine.jsonl", "the one to improve"),
        (["a\nb"], "train --data mine.jsonl", "the one to improve"),
        ([], "train --data mine.jsonl", "the one to improve"),
    ],
)
def test_the_model_that_gave_the_answers_is_the_one_to_train(
    origins: list[Any],
    command: str,
    note: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write_one(book: Book, *_: object, **__: object) -> None:
        book.add_pair({"prompt": "Is it far?", "chosen": "No", "rejected": "Yes", "kind": ""})

    monkeypatch.setattr("mlx_dpo.workshop.label.server.serve", write_one)
    rows = [
        {
            "prompt": f"Question {i}",
            "answers": ["Yes", "No"],
            "sampling": dict(zip(("model", "adapter"), origin, strict=False)),
        }
        for i, named in enumerate(origins)
        for origin in [named if isinstance(named, tuple) else (named,) if named else ()]
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert label(*(["rows.jsonl"] if rows else []), "--out", "mine.jsonl") == 0
    said = capsys.readouterr().out
    assert f"{command}\n" in said
    assert (f"Add --model to the last: {note}.\n" in said) == bool(note)


def test_files_of_pairs_alone_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2)
    assert label("pairs.jsonl") == 2
    said = capsys.readouterr().err
    assert "pairs.jsonl: nothing to decide, all rows are finished pairs" in said
    assert [file.name for file in Path().iterdir()] == ["pairs.jsonl"]


def test_pairs_among_the_tasks_are_counted_and_left_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_dpo.workshop.label.server.serve", lambda book, *_, **__: None)
    pairs = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 2
    Path("mixed.jsonl").write_text(pairs + '{"prompt": "a", "answers": ["b", "c"]}\n')
    assert label("mixed.jsonl") == 0
    said = capsys.readouterr()
    assert "mixed.jsonl: 2 finished pairs left alone" in said.err
    assert "0 pairs in preferences.jsonl; 1 task to do." in said.out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"  \n", "is empty"),
        (b"caf\xe9", "byte 0xe9 is not UTF-8"),
        ("folder", "Is a directory"),
    ],
)
def test_guidelines_that_cannot_be_read_are_refused_before_anything_is_made(
    content: bytes | str | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("g.md")
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    assert label("--guidelines", "g.md") == 2
    said = capsys.readouterr().err
    assert "g.md" in said
    assert reason in said
    assert not journal_path(Path("preferences.jsonl")).exists()


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


def test_ctrl_c_says_what_is_left_and_which_commands_come_next(
    serve: Callable[..., Served],
) -> None:
    rows = [{"prompt": f"Question {i}", "answers": ["Yes", "No"]} for i in range(3)]
    Path("my rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    book = Book(Path("mine.jsonl"), tasks_of(load_candidates("my rows.jsonl")))
    book.add_pair({"prompt": "Is it far?", "chosen": "No", "rejected": "Yes", "kind": ""})
    book.add(SKIP, book.tasks[0])
    book.add(BAD, book.tasks[1])
    book.close()
    Path("g.md").write_text("Be *kind*.")
    served = serve(*("my rows.jsonl", "--no-open", "--out", "mine.jsonl", "--guidelines", "g.md"))
    with urlopen(f"http://127.0.0.1:{served.port}/"):  # it has begun to answer
        pass
    served.process.send_signal(signal.SIGINT)
    assert served.process.stdout is not None
    said = served.process.stdout.read()
    assert "1 pair in mine.jsonl; 2 tasks to do.\n" in said
    assert "Both answers bad: 1. They make no pair; " in said
    assert "data label 'my rows.jsonl' --out mine.jsonl --guidelines g.md\n" in said
    assert "data check mine.jsonl\n" in said
    assert "train --data mine.jsonl\n" in said
