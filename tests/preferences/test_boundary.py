"""Prompt and finished conversation nest, in templates that break it; or a finding says so."""

from dataclasses import replace

import pytest

from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.encoding import PairEncoder
from mlx_dpo.records import Message, Preference
from tests.preferences.test_chat import TEMPLATE, preference, templated, turns, written

THOUGHTS = "<think>\nOr red.\n</think>\n\nBlue."


def ending(tail: str) -> ChatFormat:
    """A template that goes on after a finished conversation."""
    return templated(TEMPLATE.replace("{% endif %}", "{% else %}" + tail + "{% endif %}"))


def opening(tag: str, answer: str = "m['content']") -> ChatFormat:
    """A template whose open prompt begins an answer, and one that writes answers in some way."""
    written_so = f"({answer} if m['role'] == 'assistant' else m['content'])"
    template = TEMPLATE.replace("m['content']", written_so)
    return templated(template.replace("'<|assistant|>\\n'", f"'<|assistant|>\\n{tag}'"))


def codes(chat: ChatFormat, pair: Preference) -> list[str]:
    (fitted,) = PairEncoder(chat, 256)([pair])
    assert fitted.is_kept
    return [note.code for note in fitted.notes]


@pytest.mark.parametrize(
    "tail",
    [
        "{{ eos_token }}",
        "{{ '<|pad|>' }}",
        "The end.",
        "{{ '<|assistant|>\\n' }}",
        "{{ messages[0].content ~ ' ' ~ messages | length ~ '<|pad|>' }}",
    ],
)
def test_nothing_that_follows_the_closing_token_is_scored(tail: str) -> None:
    chat = ending(tail)
    assert written(chat)[1:] == ("Hello!<|end|>", "no<|end|>")
    assert codes(chat, preference()) == []
    longer = replace(preference(), prompt=(Message("user", "b"), *turns("c", "d")))
    assert written(chat, longer)[1:] == ("Hello!<|end|>", "no<|end|>")


def test_an_answer_of_several_turns_keeps_those_in_between() -> None:
    several = replace(preference(), chosen=turns("Hello!", "And?", "Nothing."))
    for chat in (ending("{{ eos_token }}"), templated(TEMPLATE)):
        assert written(chat, several)[1] == (
            "Hello!<|end|>\n<|user|>\nAnd?<|end|>\n<|assistant|>\nNothing.<|end|>"
        )
        assert codes(chat, several) == ["other-words"]


def test_brackets_instead_of_roles() -> None:
    chat = templated(
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    assert written(chat) == ("[INST] Hi [/INST]", " Hello! <|end|>", " no <|end|>")
    assert codes(chat, preference()) == []


def test_a_system_turn_that_moves_keeps_the_white_space_before_an_answer() -> None:
    """As some write it: in front of the last turn, while that is the user's."""
    chat = templated(
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' }}"
        "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + ' ' }}"
        "{% endif %}{{ m.content + ' [/INST]' }}{% elif m.role == 'assistant' %}"
        "{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    pair = replace(preference(), prompt=(Message("system", "Be brief."), Message("user", "Hi")))
    assert written(chat, pair)[:2] == ("[INST] Be brief. Hi [/INST]", " Hello!<|end|>")


LEAVES_OUT = "{% for m in messages if m['role'] != 'system' %}"
DROPS = "m['content'].split('</think>')[-1]"


@pytest.mark.parametrize("answer", [DROPS, "m['content']", "'<think>\\n' + m['content']"])
@pytest.mark.parametrize("words", [THOUGHTS, THOUGHTS.replace("<think>\n", "<think>")])
def test_a_block_that_the_prompt_opens_is_opened_once(answer: str, words: str) -> None:
    chat = opening("<think>\\n", answer)
    pair = preference(chosen=words, rejected=words.replace("Blue", "Red"))
    prompt, chosen, _ = written(chat, pair)
    assert prompt.endswith("<|assistant|>\n<think>\n")
    assert chosen == "Or red.\n</think>\n\nBlue.<|end|>"
    assert codes(chat, pair) == []


@pytest.mark.parametrize("tag", ["<think>\\n", "[THINK]", "<|begin_of_thought|>\\n\\n", "◁think▷"])
def test_an_answer_that_leaves_such_a_block_open_is_told(tag: str) -> None:
    chat = opening(tag)
    assert written(chat)[1] == "Hello!<|end|>"
    (fitted,) = PairEncoder(chat, 256)([preference()])
    (note,) = fitted.notes
    assert (note.code, note.at) == ("open-block", "chosen")
    assert "an answer does not close it" in note.reason


def test_one_answer_without_thoughts_is_told_at_its_key() -> None:
    pair = preference(chosen=THOUGHTS)
    (fitted,) = PairEncoder(opening("<think>\\n"), 256)([pair])
    assert [(note.code, note.at) for note in fitted.notes] == [("open-block", "rejected")]


def test_thoughts_after_an_empty_block_and_a_close_without_a_block_are_told() -> None:
    empty = opening("<think>\\n\\n</think>\\n\\n")
    assert codes(empty, preference()) == []
    assert codes(empty, preference(chosen=THOUGHTS)) == ["open-block"]
    knows = templated("{# </think> #}" + TEMPLATE)
    assert codes(knows, preference(chosen=THOUGHTS)) == []
    assert codes(knows, preference(chosen=THOUGHTS.removeprefix("<think>\n"))) == ["open-block"]
    assert codes(templated(TEMPLATE), preference(chosen="Type <think> here.")) == []


def test_a_template_that_closes_the_block_itself_nests() -> None:
    chat = opening("<think>\\n", "'<think>\\n\\n</think>\\n\\n' + m['content']")
    prompt, chosen, _ = written(chat)
    assert prompt.endswith("<|assistant|>\n<think>\n\n</think>\n\n")
    assert chosen == "Hello!<|end|>"
    assert codes(chat, preference()) == []


def test_thoughts_that_finished_conversations_leave_out_are_learned() -> None:
    chat = opening("", DROPS)
    pair = preference(chosen=THOUGHTS)
    assert written(chat, pair)[1] == THOUGHTS + "<|end|>"
    assert codes(chat, pair) == []


def test_words_that_a_template_changes_are_told() -> None:
    chat = opening("", "m['content'] | replace('otter', 'cat')")
    pair = preference(chosen="An otter.")
    assert written(chat, pair)[1] == "An cat.<|end|>"
    assert codes(chat, pair) == ["answer-changed"]
    assert codes(chat, preference()) == []


def test_what_a_template_writes_before_both_answers_counts_as_prompt_and_is_told() -> None:
    chat = templated(TEMPLATE.partition("{% if add")[0])
    prompt, chosen, _ = written(chat)
    assert prompt.endswith("<|assistant|>\n")
    assert chosen == "Hello!<|end|>"
    assert codes(chat, preference()) == ["template-words"]


def test_words_of_a_prompt_that_a_template_leaves_out_are_told() -> None:
    chat = templated(TEMPLATE.replace("{% for m in messages %}", LEAVES_OUT))
    prompt = (Message("system", "Be brief."), Message("user", "Hi"))
    assert codes(chat, replace(preference(), prompt=prompt)) == ["prompt-changed"]
    assert codes(chat, preference()) == []
    drops = opening("", DROPS)
    earlier = (Message("user", "b"), *turns(THOUGHTS, "d"))
    assert codes(drops, replace(preference(), prompt=earlier)) == []


def test_words_of_another_role_are_told_without_a_template_too() -> None:
    for chat in (templated(None), templated(TEMPLATE)):
        assert codes(chat, preference()) == []
        pair = replace(preference(), rejected=(Message("user", "no"),))
        assert "other-words" in codes(chat, pair)
