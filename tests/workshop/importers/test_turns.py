"""Turns inside texts and dialogues: none is moved, lost or taken for another's words."""

import json
from typing import Any

import pytest

from mlx_dpo.records import Message
from mlx_dpo.workshop.importers.fields import Fields, LeftOutError, Row
from mlx_dpo.workshop.importers.formats import detect

Said = tuple[str, str]
A, B = Message("system", "A"), Message("system", "B")
Q, ANSWER, Q2 = Message("user", "q"), Message("assistant", "a"), Message("user", "q2")
GOOD, BAD = Message("assistant", "x"), Message("assistant", "y")
HEAD = "<extra_id_0>System\n{}\n<extra_id_1>User\nDo you?\n<extra_id_1>Assistant\n"
NEMO_ANSWERS = {"chosen_response": "yes\n<extra_id_1>", "rejected_response": "no\n<extra_id_1>"}


def turns(*messages: Message) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]


def read(row: Fields) -> tuple[list[tuple[list[Said], str, str]], list[str]]:
    """The pairs of a row, each its prompt's turns and two answers, and the remarks on it."""
    shape = detect(row)
    assert shape is not None
    read_row = Row(json.loads(json.dumps(row)))
    pairs = shape.read(read_row, False)
    assert isinstance(pairs, list)
    found = [
        (
            [(each["role"], each["content"]) for each in pair["prompt"]],
            *(pair[key][0]["content"] for key in ("chosen", "rejected")),
        )
        for pair in pairs
    ]
    return found, read_row.notes


@pytest.mark.parametrize(
    ("more", "prompt"),
    [
        ({"prompt": turns(A, Q, ANSWER, B, Q2)}, [A, Q, ANSWER, B, Q2]),
        ({"prompt": turns(A, Q, ANSWER, B, Q2), "system": "A"}, [A, Q, ANSWER, B, Q2]),
        ({"prompt": turns(Q, ANSWER, B, Q2), "system": "A"}, [A, Q, ANSWER, B, Q2]),
        ({"prompt": turns(A, B, Q2), "history": [["q", "a"]]}, [A, Q, ANSWER, B, Q2]),
        ({"prompt": "q2", "history": turns(A, Q, ANSWER), "system": "A"}, [A, Q, ANSWER, Q2]),
        ({}, [A, Q, ANSWER, B, Q2]),
    ],
)
def test_a_system_turn_inside_a_dialogue_stays_in_its_place(
    more: Fields, prompt: list[Message]
) -> None:
    before = [] if more else [A, Q, ANSWER, B, Q2]
    row = {"chosen": turns(*before, GOOD), "rejected": turns(*before, BAD), **more}
    assert read(row)[0] == [(prompt, "x", "y")]


@pytest.mark.parametrize("system", ["", "Be brief"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_marks_of_nemo_are_turns_and_no_text(system: str, end: str) -> None:
    row = {"prompt": HEAD.format(system), **NEMO_ANSWERS}
    row = {name: text.replace("\n", end) for name, text in row.items()}
    own = [("system", system)] if system else []
    expected = ([*own, ("user", "Do you?")], "yes", "no")
    assert read(row)[0] == [expected]
    whole = {name[: name.index("_")]: row["prompt"] + row[name] for name in NEMO_ANSWERS}
    assert read(whole)[0] == [expected]


@pytest.mark.parametrize(
    ("prompt", "chosen", "reason"),
    [
        ("<extra_id_0>System\n\n", "x", "no turn before the assistant's"),
        ("\n\nAssistant:", "x", "no turn before the assistant's"),
        (HEAD + "<extra_id_2>quality:4\n", "x", "begins no turn"),
        ("q", "x\n<extra_id_1>User\nmore", "a mark <extra_id_...> of another turn"),
        ("q", "\n\nHuman: other\n\nAssistant: x", "the prompt is no turn of the two dialogues"),
    ],
)
def test_a_transcript_that_cannot_be_one_is_left_out(prompt: str, chosen: str, reason: str) -> None:
    row = {"prompt": prompt, "chosen": chosen, "rejected": chosen + "."}
    with pytest.raises(LeftOutError, match=reason):
        read(row)


@pytest.mark.parametrize("start", ["", "\n\n", "\r\n\r\n", " "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_transcript_is_known_without_its_first_breaks_and_with_any_line_ends(
    start: str, end: str
) -> None:
    def text(*parts: str) -> str:
        return start + f"{end}{end}".join(parts)

    asked = ("Human: q", "Assistant: a", "Human: q2")
    row = {key: text(*asked, f"Assistant: {key}") for key in ("chosen", "rejected")}
    expected = ([Q, ANSWER, Q2], "chosen", "rejected")
    assert read(row)[0] == [expected]
    prompt = text(*asked, "Assistant:")
    assert read({"prompt": prompt, "chosen": "chosen", "rejected": "rejected"})[0] == [expected]
    assert read({"prompt": prompt, **row})[0] == [expected]


def test_a_prompt_that_quotes_a_transcript_is_one_text_and_that_is_said() -> None:
    for prompt in ("Human: q\n\nAssistant: a", "Human: who is that?"):
        pairs, notes = read({"prompt": prompt, "chosen": "x", "rejected": "y"})
        assert pairs == [([("user", prompt)], "x", "y")]
        assert len(notes) == 1
        assert "begins with 'Human:' and is read as one text" in notes[0]


RIVER = "Name a river."


@pytest.mark.parametrize(
    ("prompt", "answers", "kept"),
    [
        (RIVER, (f"{RIVER} The Nile.", f"{RIVER} No."), ("The Nile.", "No.")),
        (RIVER, (f"\n{RIVER}\nThe Nile.", f"{RIVER}No."), ("The Nile.", "No.")),
        (
            "def f(x):\n",
            ("def f(x):\n    return x", "def f(x):\n    pass"),
            ("    return x", "    pass"),
        ),
        (
            "说出一条河的名字。",
            ("说出一条河的名字。尼罗河。", "说出一条河的名字。不。"),
            ("尼罗河。", "不。"),
        ),
        (RIVER, (f"{RIVER} The Nile.", "No."), None),
        ("A big", ("A bigger one", "A bigot"), None),
        ("Hello", ("Hello! You?", "Hello there."), None),
    ],
)
@pytest.mark.parametrize("as_messages", [False, True])
def test_answers_that_both_repeat_the_whole_prompt_lose_it_with_a_remark(
    prompt: str, answers: tuple[str, str], kept: tuple[str, str] | None, as_messages: bool
) -> None:
    row: dict[str, Any] = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    if as_messages:
        row["prompt"] = turns(Message("user", prompt))
    pairs, notes = read(row)
    assert pairs == [([("user", prompt)], *(kept or answers))]
    assert ("both answers repeated the whole prompt, which is taken off them" in notes) == bool(
        kept
    )


@pytest.mark.parametrize("judged", [1, 2, 1e999])
@pytest.mark.parametrize("before", [[], [A], [A, Message("assistant", "Hello.")]])
def test_a_vote_on_a_turn_is_on_the_answer_of_that_number(
    before: list[Message], judged: float
) -> None:
    shared = [Q] if judged == 1 else [Q, ANSWER, Q2]
    more = [Q2, ANSWER] if judged == 1 else []
    row = {"winner": "model_a", "turn": judged}
    row |= {
        f"conversation_{n}": turns(*before, *shared, said, *more)
        for n, said in zip("ab", (GOOD, BAD), strict=True)
    }
    assert read(row)[0] == [([*before, *shared], "x", "y")]


@pytest.mark.parametrize("more", [{"messages": turns(Q, GOOD)}, {"query": "q", "response": ["x"]}])
def test_several_rejected_answers_of_ms_swift_are_a_pair_each(more: Fields) -> None:
    row = {**more, "rejected_response": ["y", "z"]}
    assert read(row)[0] == [([Q], "x", "y"), ([Q], "x", "z")]
