"""The journal of a person's decisions: nothing is lost, nothing foreign is written over."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.errors import DataError, LockedError
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.records import Message
from mlx_dpo.workshop.candidates import Candidate, Candidates
from mlx_dpo.workshop.label.book import (
    BAD,
    PAIR,
    SKIP,
    TIE,
    Book,
    Task,
    journal_path,
    tasks_of,
)
from mlx_dpo.workshop.label.view import length_meter, view


def tasks(number: int = 4) -> list[Task]:
    return tasks_of(
        Candidates(
            f"r{i}",
            (Message("user", f"Question {i}"),),
            "tone",
            (Candidate("Yes"), Candidate("No")),
        )
        for i in range(number)
    )


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "pairs.jsonl"


def choose(book: Book, chosen: str = "Yes", rejected: str = "No") -> None:
    task = book.next_task()
    assert task is not None
    book.add_pair(task.as_pair(chosen, rejected), task=task.id)


def test_each_decision_is_in_both_files_at_once(out: Path) -> None:
    book = Book(out, tasks())
    choose(book)
    assert [pair.chosen[0].content for pair in read_preferences(out)] == ["Yes"]
    book.add(TIE, book.tasks[1])
    events = [json.loads(line)["event"] for line in journal_path(out).read_text().splitlines()]
    assert events == ["begin", PAIR, TIE]
    assert book.next_task() == book.tasks[2]
    book.close()


def test_a_later_session_goes_on_and_asks_again_what_was_skipped(out: Path) -> None:
    book = Book(out, tasks())
    choose(book)
    book.add(SKIP, book.tasks[1])
    book.add(TIE, book.tasks[2])
    assert book.next_task() == book.tasks[3]
    assert book.num_done() == 2
    salt = book.salt
    book.close()
    again = Book(out, tasks())
    assert again.salt == salt
    assert again.next_task() == again.tasks[1]
    assert (again.num_done(), again.counts) == (2, {PAIR: 1, TIE: 1})
    again.close()


def test_undo_takes_back_one_after_the_other_and_survives_a_restart(out: Path) -> None:
    book = Book(out, tasks())
    choose(book)
    choose(book, "No", "Yes")
    assert book.undo() == PAIR
    book.close()
    book = Book(out, tasks())
    assert [pair.chosen[0].content for pair in read_preferences(out)] == ["Yes"]
    assert [book.undo(), book.undo()] == [PAIR, None]
    assert out.read_text() == ""
    assert book.next_task() == book.tasks[0]
    book.close()


def test_what_was_undone_is_shown_before_what_was_skipped(out: Path) -> None:
    book = Book(out, tasks())
    book.add(SKIP, book.tasks[0])
    choose(book)
    book.close()
    book = Book(out, tasks())
    assert book.next_task() == book.tasks[0]
    assert book.undo() == PAIR
    assert book.next_task() == book.tasks[1]
    choose(book)
    assert book.next_task() == book.tasks[0]
    book.close()


def test_an_undo_after_a_restart_takes_back_what_the_page_showed_as_last(out: Path) -> None:
    book = Book(out, tasks())
    choose(book)
    book.add(SKIP, book.tasks[1])
    book.close()
    book = Book(out, tasks())  # the skip is forgotten, and the pair the last decision
    assert book.undo() == PAIR
    book.close()
    book = Book(out, tasks())
    assert (book.pairs, out.read_text()) == ([], "")
    book.close()


def test_any_decision_can_be_taken_back_and_the_others_stay(out: Path) -> None:
    book = Book(out, tasks())
    choose(book)
    choose(book, "No", "Yes")
    book.add(TIE, book.tasks[2])
    first = book.decisions[0].number
    assert book.undo(first) == PAIR
    assert book.next_task() == book.tasks[0]
    with pytest.raises(DataError, match="taken back already"):
        book.undo(first)
    book.close()
    book = Book(out, tasks())
    assert [pair.chosen[0].content for pair in read_preferences(out)] == ["No"]
    assert [decision.event for decision in book.decisions] == [PAIR, TIE]
    book.close()


def test_both_bad_is_decided_makes_no_pair_and_keeps_the_prompt(out: Path) -> None:
    book = Book(out, tasks(2))
    book.add(BAD, book.tasks[0])
    assert (book.pairs, book.num_done(), book.next_task()) == ([], 1, book.tasks[1])
    kept = json.loads(journal_path(out).read_text().splitlines()[-1])
    assert (kept["event"], kept["prompt"], kept["kind"]) == (BAD, "Question 0", "tone")
    book.close()
    book = Book(out, tasks(2))
    assert book.shares()["bad"] == 1
    assert book.undo() == BAD
    assert book.next_task() == book.tasks[0]
    book.close()


def test_a_journal_of_an_earlier_version_still_reads(out: Path) -> None:
    task = tasks()[1].id
    pair = {"prompt": "Question 1", "chosen": "Yes", "rejected": "No", "kind": "tone"}
    entries = [
        {"event": "begin", "salt": "5a17"},
        {"event": "pair", "task": task, "shown": "a", **pair},
        {"event": "tie", "task": tasks()[0].id},
        {"event": "undo"},
        {"event": "skip", "task": tasks()[2].id},
    ]
    journal_path(out).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    book = Book(out, tasks())
    assert [(each.event, each.task) for each in book.decisions] == [(PAIR, task)]
    assert (book.salt, len(read_preferences(out))) == ("5a17", 1)
    assert book.undo() == PAIR
    book.close()


def test_the_page_gets_the_last_ten_decisions_with_their_texts(out: Path) -> None:
    book = Book(out, tasks(11))
    for _ in range(9):
        choose(book, "No", "Yes")
    book.add(BAD, book.tasks[9])
    book.add_pair({"prompt": "Is it far?", "chosen": "x" * 5000, "rejected": "Yes", "kind": ""})
    last = view(book)["last"]
    assert len(last) == 10
    assert [each["question"] for each in last[:3]] == ["Is it far?", "Question 9", "Question 8"]
    assert (last[0]["has_task"], len(last[0]["texts"][0])) == (False, 1000)
    assert (last[1]["event"], last[1]["texts"]) == (BAD, ["Yes", "No"])
    assert (last[2]["has_task"], last[2]["texts"]) == (True, ["No", "Yes"])
    book.close()


def test_pairs_by_hand_and_of_other_files_are_counted_apart(out: Path) -> None:
    book = Book(out, tasks(2))
    choose(book)
    book.add(TIE, book.tasks[1])
    book.add_pair({"prompt": "Is it far?", "chosen": "No", "rejected": "Yes", "kind": ""})
    assert book.shares() == {"pairs": 1, "ties": 1, "bad": 0, "by_hand": 1, "elsewhere": 0}
    book.close()
    book = Book(out, [])
    assert book.shares() == {"pairs": 0, "ties": 0, "bad": 0, "by_hand": 1, "elsewhere": 1}
    book.close()


def test_a_line_that_a_kill_cut_off_costs_that_line_alone(out: Path) -> None:
    book = Book(out, tasks())
    choose(book)
    before = out.read_bytes()
    choose(book)
    book.close()
    file = journal_path(out)
    whole = file.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for kept in (1, last // 2, last - 1):
        file.write_bytes(whole[: len(whole) - last + kept])
        out.write_bytes(before)
        again = Book(out, tasks())
        assert len(again.pairs) == 1
        again.close()
        file.write_bytes(whole)
        again = Book(out, tasks())
        assert len(again.pairs) == len(read_preferences(out)) == 2
        again.close()


def test_a_kill_between_journal_and_export_loses_nothing(out: Path) -> None:
    book = Book(out, tasks())
    choose(book)
    before = out.read_bytes()
    choose(book)
    book.close()
    out.write_bytes(before)
    book = Book(out, tasks())
    assert len(read_preferences(out)) == 2
    book.close()


def test_pairs_of_somebody_else_are_never_written_over(out: Path) -> None:
    out.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(DataError, match="already holds pairs that were not labelled there"):
        Book(out, tasks())
    out.unlink()
    book = Book(out, tasks())
    choose(book)
    book.close()
    mended = out.read_text().replace("Yes", "Yes!")
    out.write_text(mended)
    with pytest.raises(DataError, match="already holds pairs that were not labelled there"):
        Book(out, tasks())
    assert out.read_text() == mended


def test_one_session_at_a_time(out: Path) -> None:
    book = Book(out, tasks())
    with pytest.raises(LockedError, match="in use by another"):
        Book(out, tasks())
    book.close()
    Book(out, tasks()).close()


@pytest.mark.parametrize(
    "line",
    [
        *("nonsense", "[]", "{}", '{"event": "dance"}', '{"event": "undo"}'),
        *('{"event": "undo", "of": 1}', '{"event": "undo", "of": null}'),
    ],
)
def test_a_damaged_journal_is_named_and_left_alone(out: Path, line: str) -> None:
    Book(out, tasks()).close()
    file = journal_path(out)
    file.write_text(file.read_text() + line + "\n")
    damaged = file.read_bytes()
    with pytest.raises(DataError, match=r"pairs\.jsonl\.labels\.jsonl"):
        Book(out, tasks())
    assert file.read_bytes() == damaged


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ({"chosen": "same", "rejected": "same"}, "the two answers are the same"),
        ({"chosen": "  "}, "needs a prompt and two answers"),
        ({"chosen": 5}, "must be text"),
        ({"chosen": "half \ud800"}, "surrogate"),
        ({"prompt": ""}, "needs a prompt"),
        ({"kind": []}, "must be text"),
        ({"chosen": "No", "rejected": "Yes"}, "row 1 prefers the other way round"),
        ({"chosen": "Yes", "rejected": "No"}, "the same pair as row 1"),
    ],
)
def test_what_the_reader_would_refuse_is_not_taken_down(
    out: Path, pair: dict[str, Any], reason: str
) -> None:
    book = Book(out, [])
    good = {"prompt": "Is it?", "chosen": "Yes", "rejected": "No", "kind": ""}
    book.add_pair(good)
    size = os.stat(journal_path(out)).st_size
    with pytest.raises(DataError, match=reason):
        book.add_pair({**good, "rejected": "Never", **pair})
    assert os.stat(journal_path(out)).st_size == size
    book.close()


def test_the_same_answers_are_one_task_whatever_their_order_and_file() -> None:
    prompt = (Message("user", "Q"),)
    one = Candidates("x", prompt, "", (Candidate("Yes"), Candidate("No")))
    other = Candidates("y", prompt, "", (Candidate("No"), Candidate("Yes"), Candidate("Perhaps")))
    assert [task.texts for task in tasks_of([one, other])] == [
        ("Yes", "No"),
        ("No", "Perhaps"),
        ("Yes", "Perhaps"),
    ]
    assert tasks_of([Candidates("p", prompt, is_pair=True)]) == []
    written = tasks_of([Candidates("z", prompt), Candidates("u", prompt, "", (Candidate("One"),))])
    assert [(task.texts, task.is_choice) for task in written] == [
        (("", ""), False),
        (("One", ""), False),
    ]


def test_either_answer_may_stand_first_and_stays_there() -> None:
    many = tasks(200)
    swapped = [task.is_shown_swapped("salt") for task in many]
    assert 60 < sum(swapped) < 140
    assert swapped == [task.is_shown_swapped("salt") for task in many]
    assert swapped != [task.is_shown_swapped("pepper") for task in many]


def test_the_length_meter_speaks_up_when_one_side_keeps_winning(out: Path) -> None:
    book = Book(out, tasks(22))
    for _ in range(19):
        choose(book)
    assert length_meter(book.pairs)["leans"] == ""
    choose(book)
    meter = view(book)["lengths"]
    assert (meter["longer"], meter["shorter"], meter["leans"]) == (20, 0, "longer")
    book.close()
