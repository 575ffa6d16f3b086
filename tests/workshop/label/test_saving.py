"""Decisions on a disk that refuses them, and files that change under a session: nothing is lost."""

import errno
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo import files
from mlx_dpo.errors import DataError, DiskError
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.workshop.label.book import BAD, PAIR, SKIP, TIE, Book, journal_path
from tests.workshop.label.test_book import choose, tasks


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


class Refusing(files.Disk):
    """A disk that refuses a call of a kind as often as it is told, half of a write done.

    Attributes:
        left: How often, by the name of the call.
    """

    def __init__(self, **left: int) -> None:
        self.left = Counter(left)

    def _refuses(self, call: str) -> bool:
        self.left[call] -= 1
        return self.left[call] >= 0

    def write(self, file: io.FileIO, data: memoryview) -> int:
        if self._refuses("write"):
            super().write(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(file, data)

    def flush(self, descriptor: int) -> None:
        if self._refuses("flush"):
            raise OSError(errno.EIO, "Input/output error")
        super().flush(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        if self._refuses("rename"):
            raise OSError(errno.EIO, "Input/output error")
        super().rename(old, new)


@pytest.mark.parametrize("failing", [{"write": 1}, {"flush": 1}, {"flush": 2}, {"flush": 5}])
def test_a_decision_that_the_disk_refused_is_as_if_never_made(
    out: Path, monkeypatch: pytest.MonkeyPatch, failing: dict[str, int]
) -> None:
    book = Book(out, tasks())
    choose(book)
    disk = Refusing(**failing)
    monkeypatch.setattr(files, "disk", disk)
    refused = 0
    while any(left > 0 for left in disk.left.values()):
        with pytest.raises(DiskError, match=r"labels\.jsonl: not written: "):
            choose(book, "No", "Yes")
        refused += 1
    assert (refused > 0, len(book.pairs), book.revision) == (True, 1, 2)
    choose(book, "No", "Yes")
    book.undo(3)
    book.close()
    events = [json.loads(line)["event"] for line in journal_path(out).read_text().splitlines()]
    assert events == ["begin", PAIR, PAIR, "undo"]
    book = Book(out, tasks())
    assert (len(book.pairs), len(read_preferences(out))) == (1, 1)
    book.close()


def test_pairs_that_could_not_be_exported_are_written_with_the_next_or_at_the_next_start(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Book(out, tasks())
    choose(book)
    monkeypatch.setattr(files, "disk", Refusing(rename=2))
    for number in (2, 3):
        with pytest.raises(DiskError, match=r"the decision is kept in pairs\.jsonl\.labels\.jsonl"):
            choose(book)
        assert len(book.pairs) == number
    assert len(read_preferences(out)) == 1
    book.close()
    book = Book(out, tasks(5))
    assert len(read_preferences(out)) == 3
    monkeypatch.setattr(files, "disk", Refusing(rename=1))
    with pytest.raises(DiskError):
        choose(book)
    choose(book)
    assert len(read_preferences(out)) == 5
    book.close()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


def _change(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"Question 0", b"Question 9"))


def _add_to(path: Path) -> None:
    with path.open("a") as file:
        file.write('{"event": "tie", "task": "x"}\n')


def _replace(path: Path) -> None:
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@pytest.mark.parametrize("tamper", [Path.unlink, _cut, _change, _add_to, _replace])
def test_a_journal_changed_under_a_session_is_noticed_and_nothing_is_lost(
    out: Path, tamper: Callable[[Path], None]
) -> None:
    book = Book(out, tasks())
    choose(book)
    book.add(TIE, book.tasks[1])
    file = journal_path(out)
    before = file.read_bytes()
    tamper(file)
    tampered = file.read_bytes() if file.exists() else None
    for _ in range(2):
        with pytest.raises(DiskError, match=r"by another program meanwhile; .* start again"):
            choose(book)
    assert (book.revision, book.counts) == (3, {PAIR: 1, TIE: 1})
    assert (file.read_bytes() if file.exists() else None) == tampered
    book.close()
    out.with_name(f"{file.name}.kept").rename(file)
    assert file.read_bytes() == before
    book = Book(out, tasks())
    assert (book.revision, book.counts) == (3, {PAIR: 1, TIE: 1})
    book.close()


def test_a_journal_that_another_program_only_touched_is_written_on(out: Path) -> None:
    book = Book(out, tasks())
    os.utime(journal_path(out), (1, 1))
    choose(book)
    assert len(book.pairs) == 1
    book.close()


def test_pairs_changed_by_hand_under_a_session_are_not_written_over(out: Path) -> None:
    book = Book(out, tasks())
    choose(book)
    mended = out.read_text().replace("Yes", "Yes!")
    out.write_text(mended)
    with pytest.raises(DataError, match="already holds pairs that were not labelled there"):
        choose(book)
    assert (out.read_text(), book.revision) == (mended, 2)
    out.unlink()
    choose(book)
    assert len(read_preferences(out)) == 2
    book.close()


def test_a_decision_that_an_earlier_version_wrote_twice_counts_once(out: Path) -> None:
    ids = [task.id for task in tasks()]
    pair: dict[str, Any] = {"event": PAIR, "task": ids[0], "shown": "a"}
    pair |= {"prompt": "Question 0", "chosen": "Yes", "rejected": "No", "kind": "tone"}
    skip, tie = {"event": SKIP, "task": ids[2]}, {"event": TIE, "task": ids[1]}
    undo = {"event": "undo", "of": 3}
    entries: list[dict[str, Any]] = [
        {"event": "begin", "salt": "5a17"},
        pair,
        pair,
        {**tie, "event": BAD},
        tie,
    ]
    entries += [undo, undo, skip, skip, tie, {"event": "undo", "of": 2}]
    journal_path(out).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    book = Book(out, tasks())
    assert [(each.number, each.event) for each in book.decisions] == [(7, TIE)]
    assert (book.revision, out.read_text()) == (8, "")
    book.close()


def test_a_file_of_somebody_else_without_a_last_line_break_is_left_alone(out: Path) -> None:
    journal_path(out).write_text("my notes")
    with pytest.raises(DataError, match=r"labels\.jsonl:1: not a line of this journal"):
        Book(out, tasks())
    assert journal_path(out).read_text() == "my notes"
