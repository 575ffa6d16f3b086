"""Texts to token ids, against what TRL does with 24 awkward rows, and where it is not followed."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences.chat import ChatFormat, chat_format, pad_id_of, today
from mlx_dpo.preferences.collate import pad_and_collate_pref
from mlx_dpo.preferences.encoding import encode_preferences
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.records import Message, Preference, PreferenceExample
from tests import oracle

FOLDERS = {"llama": "llama/model", "gemma2": "bos_tokenizer"}
END, PAD = 3, 4

TURN = "{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}"
TEMPLATE = (
    "{% for m in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def load_tokenizer(name: str = "llama") -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(oracle.FOLDER / FOLDERS[name])


@cache
def oracle_format(name: str) -> ChatFormat:
    return chat_format(load_tokenizer(name))


def plain_format(name: str) -> ChatFormat:
    """For texts that hold their markers: no template, a BOS where the tokenizer puts one."""
    return replace(oracle_format(name), has_template=False, adds_bos=name == "gemma2")


def encode_texts(
    chat: ChatFormat, prompt: str, chosen: str, rejected: str
) -> tuple[PreferenceExample, bool]:
    """A pair of texts that hold their markers, split and closed as a template's texts are."""
    return chat._split(*chat._encode([prompt, prompt + chosen, prompt + rejected]))


def templated(template: str | None, **special_tokens: str) -> ChatFormat:
    tokenizer = load_tokenizer()
    tokenizer.chat_template = template
    for role, token in special_tokens.items():
        setattr(tokenizer, role, token)
    return chat_format(tokenizer)


def preference(
    prompt: str = "Hi", chosen: str = "Hello!", rejected: str = "no", id: str = "1"
) -> Preference:
    return Preference(
        (Message("user", prompt),),
        (Message("assistant", chosen),),
        (Message("assistant", rejected),),
        kind="",
        id=id,
    )


# --- The 24 rows ---------------------------------------------------------------------------------


def oracle_rows(kind: str) -> list[Any]:
    """Rows of one kind for both tokenizers: "plain", "messages" or "implicit plain"."""
    return [
        pytest.param(name, row, id=f"{name}-{title}")
        for name in FOLDERS
        for title, row in oracle.read("tokenization.json")[name].items()
        if kind == kind_of(row["row"])
    ]


def kind_of(row: dict[str, Any]) -> str:
    if isinstance(row["chosen"], list):
        return "messages"
    return "plain" if "prompt" in row else "implicit plain"


def read_one(folder: Path, row: dict[str, Any]) -> Preference:
    file = folder / "row.jsonl"
    file.write_text(json.dumps(row), encoding="utf-8")
    (found,) = read_preferences(file)
    return found


def expected_ids(row: dict[str, Any]) -> PreferenceExample:
    """TRL's ids, but for two things.

    TRL also scores what a template writes after the closing token (here a newline), and gives a
    text that ends in EOS and a newline a second EOS. Generation stops at the closing token, so the
    model never says either: here the response ends there.

    TRL puts a BOS before a text that begins with one; a model was trained with one.
    """
    prompt, sides = row["prompt_ids"], []
    for side in ("chosen_ids", "rejected_ids"):
        tokens = row["tokens"][side]
        extra = 0
        if tokens[-3:] == ["<|end|>", "\n", "<|end|>"]:
            extra = 2
        elif tokens[-2:] == ["<|end|>", "\n"]:
            extra = 1
        sides.append(row[side][: len(tokens) - extra])
    if row["tokens"]["prompt_ids"][:2] == ["<|bos|>", "<|bos|>"]:
        prompt = prompt[1:]
    return PreferenceExample(prompt, *sides)


@pytest.mark.parametrize(("name", "row"), oracle_rows("plain"))
def test_plain_texts_give_the_ids_of_trl(name: str, row: dict[str, Any]) -> None:
    texts = row["row"]
    example, merged = encode_texts(
        plain_format(name), texts["prompt"], texts["chosen"], texts["rejected"]
    )
    assert example == expected_ids(row)
    assert merged == (not row["prompt_alone_is_prefix"])


@pytest.mark.parametrize(("name", "row"), oracle_rows("messages"))
def test_messages_give_the_ids_of_trl(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    example, merged = oracle_format(name).encode_pair(read_one(tmp_path, row["row"]))
    assert example == expected_ids(row)
    assert not merged


@pytest.mark.parametrize(("name", "row"), oracle_rows("implicit plain"))
def test_plain_texts_without_a_prompt_are_refused(
    name: str, row: dict[str, Any], tmp_path: Path
) -> None:
    """TRL takes the letters both begin with as prompt, and learns "ello there" after "H"."""
    with pytest.raises(DataError, match="key 'prompt' \\(or 'user'\\) is missing"):
        read_one(tmp_path, row["row"])


def test_each_response_of_the_oracle_ends_with_one_closing_token() -> None:
    for _, row in (param.values for param in (*oracle_rows("plain"), *oracle_rows("messages"))):
        for ids in expected_ids(row)[1:]:
            assert ids[-1] == END
            assert ids[-2:].count(END) == 1


@pytest.mark.parametrize("case", ["max_length_none", "keep_start_64", "keep_start_16"])
def test_truncated_rows_equal_those_of_trl(case: str) -> None:
    """Rows are cut at the end; TRL's `keep_end` is not offered here.

    TRL drops the row whose prompt fills the length without a word; here the collator gives it an
    empty mask, and `encode_preferences` counts it.
    """
    stored = oracle.read("collation.json")
    truth = stored["cases"][case]
    chat = plain_format("llama")
    examples = [
        encode_texts(chat, row["prompt"], row["chosen"], row["rejected"])[0]
        for row in stored["rows"]
    ]
    limit = {"max_length_none": 128, "keep_start_64": 64, "keep_start_16": 16}[case]
    kept = [e for e in examples if len(e.prompt_ids) < limit]
    assert kept == [PreferenceExample(*example.values()) for example in truth["examples"]]

    width = len(truth["input_ids"][0])
    cx, cy, cm, rx, ry, rm = pad_and_collate_pref(kept, max_seq_len=width, pad_id=PAD)
    # TRL stacks chosen on rejected and shifts later.
    ids = np.array(truth["input_ids"])
    mask = np.array(truth["completion_mask"])
    np.testing.assert_array_equal(np.concatenate([cx, rx]), ids[:, :-1])
    np.testing.assert_array_equal(np.concatenate([cy, ry]), ids[:, 1:])
    np.testing.assert_array_equal(np.concatenate([cm, rm]), mask[:, 1:])
    assert np.concatenate([cm, rm]).sum(axis=1).tolist() == truth["scored_tokens_2B"]

    for example in set(map(tuple_of, examples)) - set(map(tuple_of, kept)):
        _, _, *masks = pad_and_collate_pref(
            [PreferenceExample(*map(list, example))], max_seq_len=width, pad_id=PAD
        )
        assert masks[0].sum().item() == masks[3].sum().item() == 0


def tuple_of(example: PreferenceExample) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(ids) for ids in example)


# --- Templates -----------------------------------------------------------------------------------


def written(chat: ChatFormat, pair: Preference | None = None) -> tuple[str, str, str]:
    """A pair as text again, after it has been token ids."""
    example, _ = chat.encode_pair(pair or preference())
    prompt, chosen, rejected = (str(chat.tokenizer.decode(ids)) for ids in example)
    return prompt, chosen, rejected


def test_without_a_template_turns_take_the_form_of_the_course() -> None:
    chat = templated(None)
    assert not chat.has_template
    assert written(chat) == ("<|user|>\nHi\n<|assistant|>\n", "Hello!<|end|>", "no<|end|>")


def test_without_a_template_earlier_answers_are_closed_too() -> None:
    chat = templated(None)
    pair = replace(
        preference(), prompt=(Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    )
    assert written(chat, pair)[0] == (
        "<|user|>\na\n<|assistant|>\nb<|end|><|user|>\nc\n<|assistant|>\n"
    )


def test_without_a_template_the_closing_token_is_end_though_eos_is_another() -> None:
    chat = templated(None, eos_token="<|pad|>")
    assert chat.closing_id == END
    assert chat.stop_ids == {END, PAD}


def test_without_a_template_a_bos_is_written_where_the_tokenizer_writes_one() -> None:
    tokenizer = load_tokenizer("gemma2")
    tokenizer.chat_template = None
    chat = chat_format(tokenizer)
    assert chat.adds_bos
    ids = chat.prompt_ids([Message("user", "Hi")])
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_without_a_template_a_system_turn_is_refused() -> None:
    pair = replace(preference(id="7"), prompt=(Message("system", "a"), Message("user", "b")))
    with pytest.raises(DataError, match=r"pair 7: .* knows no role 'system'"):
        encode_preferences([pair], templated(None), max_length=64)


def test_a_template_writes_its_own_bos() -> None:
    chat = oracle_format("gemma2")
    assert not chat.adds_bos
    assert written(chat)[0].count("<|bos|>") == 1


def test_a_template_that_trims_is_followed() -> None:
    chat = templated(TEMPLATE.replace("m['content']", "m['content'] | trim"))
    trimmed = written(chat, preference(prompt=" Hi \n", chosen="  Hello! ", rejected="\tno"))
    assert trimmed == written(chat)


def test_the_closing_token_is_what_the_template_writes_and_not_eos() -> None:
    """Chat models often end a turn with a token of its own, and EOS ends a document."""
    chat = templated(TEMPLATE, eos_token="<|pad|>")
    assert (chat.closing_id, chat.closing_text) == (END, "<|end|>")
    assert written(chat)[1:] == ("Hello!<|end|>", "no<|end|>")
    assert chat.stop_ids == {END, PAD}


def test_a_template_without_a_closing_token_gets_eos() -> None:
    chat = templated(TEMPLATE.replace("<|end|>", ""))
    assert written(chat) == (
        "<|user|>\nHi\n<|assistant|>\n",
        "Hello!\n<|end|>",
        "no\n<|end|>",
    )


def test_nothing_after_the_closing_token_is_scored() -> None:
    _, chosen, rejected = written(templated(TEMPLATE.replace("<|end|>\\n", "<|end|>\\n\\n \\n")))
    assert (chosen, rejected) == ("Hello!<|end|>", "no<|end|>")


def test_words_a_template_puts_before_an_answer_belong_to_the_prompt() -> None:
    """Reasoning models open with an empty thought that finished conversations leave out."""
    opening = "<|assistant|>\\n(thinks)\\n"
    chat = templated(TEMPLATE.replace("'<|assistant|>\\n'", f"'{opening}'"))
    assert written(chat) == (
        "<|user|>\nHi<|end|>\n<|assistant|>\n(thinks)\n",
        "Hello!<|end|>",
        "no<|end|>",
    )
    several = replace(preference(id="3"), chosen=turns("Hello!", "And?", "Nothing."))
    with pytest.raises(DataError, match=r"pair 3: .*give the last answer alone"):
        encode_preferences([several], chat, max_length=64)


def turns(*texts: str) -> tuple[Message, ...]:
    roles = ("assistant", "user")
    return tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))


def test_a_template_that_refuses_system_messages_names_the_pair() -> None:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
    chat = templated(refuse + "{% endif %}" + TEMPLATE)
    pair = replace(preference(id="12"), prompt=(Message("system", "a"), Message("user", "b")))
    with pytest.raises(DataError, match=r"^pair 12: .*: no system role; --drop-bad leaves"):
        encode_preferences([preference(), pair], chat, max_length=64)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ('{{ strftime_now("%B %d, %Y") }}', "July 26, 2024"),
        (
            "{% if not date_string is defined %}{%- if strftime_now is defined %}"
            "{%- set date_string = strftime_now('%Y-%m-%d %H:%M') %}{%- else %}"
            "{%- set date_string = 'no' %}{%- endif %}{%- endif -%}{{ date_string }}",
            "2024-07-26 00:00",
        ),
    ],
)
def test_a_template_is_told_the_date_of_the_run_and_not_the_clocks(
    words: str, expected: str
) -> None:
    tokenizer = load_tokenizer()
    tokenizer.chat_template = f"<|system|>\n{words}<|end|>\n{TEMPLATE}"
    chat = chat_format(tokenizer, "2024-07-26")
    prompt, chosen, _ = written(chat)
    assert prompt.startswith(f"<|system|>\n{expected}<|end|>\n<|user|>\nHi")
    assert chosen == "Hello!<|end|>"
    assert chat_format(tokenizer).date == today()


def test_a_template_without_a_date_has_none() -> None:
    assert chat_format(load_tokenizer(), "2024-07-26").date is None


def word_tokenizer(**special_tokens: str) -> Any:
    """Whole words only; whatever it does not know is one unknown token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "</s>": 2}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special_tokens)


def test_an_unknown_closing_token_gives_way_to_eos() -> None:
    assert chat_format(word_tokenizer(eos_token="</s>")).closing_id == 2


def test_a_tokenizer_without_any_closing_token_is_refused() -> None:
    with pytest.raises(UsageError, match="no token that ends an answer"):
        chat_format(word_tokenizer())


def test_a_template_that_refuses_everything_is_the_fault_of_the_model() -> None:
    with pytest.raises(UsageError, match="not today") as raised:
        templated("{{ raise_exception('not today') }}")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("pad", "eos", "expected"), [(None, None, 0), (None, 3, 3), (0, 3, 0), (4, 3, 4)]
)
def test_pad_id_is_any_valid_id(pad: int | None, eos: int | None, expected: int) -> None:
    """0 is an id like any other, not a missing one."""
    assert pad_id_of(SimpleNamespace(pad_token_id=pad, eos_token_id=eos)) == expected


# --- A whole file --------------------------------------------------------------------------------


def test_every_row_is_kept_or_counted_as_dropped() -> None:
    chat = oracle_format("llama")
    prompt_length = len(chat.prompt_ids([Message("user", "Hi")]))
    rows = [
        preference(id="whole"),
        preference(chosen="the otter finds a lantern", id="cut"),
        preference(chosen="no", id="equal"),
        preference(chosen="the otter " * 9 + "a", rejected="the otter " * 9 + "b", id="cut equal"),
        preference(prompt="the otter " * 20, id="no room"),
    ]
    encoded = encode_preferences(rows, chat, max_length=prompt_length + 5)
    assert [row.id for row in encoded.preferences] == ["whole", "cut"]
    assert encoded.dropped == {"equal": 2, "too-long": 1}
    assert encoded.read == len(rows) == len(encoded.examples) + sum(encoded.dropped.values())
    assert encoded.num_cut == 1
    assert encoded.num_closed == 3  # four responses, one of them cut
    assert encoded.num_merged == 0


def test_pairs_that_training_refuses_are_refused_in_memory_too_or_left_out() -> None:
    refuse = "{% if 'Latin' in messages[0].content %}{{ raise_exception('no Latin') }}{% endif %}"
    chat = templated(refuse + TEMPLATE)
    rows = [
        preference(id="good"),
        preference(chosen="It <|end|> goes on.", id="special"),
        preference(prompt="Say it in Latin.", id="refused"),
    ]
    with pytest.raises(DataError, match=r"^pair special: '<.end.>' is a token of this model"):
        encode_preferences(rows, chat, max_length=64)
    encoded = encode_preferences(rows, chat, max_length=64, drop_bad=True)
    assert [row.id for row in encoded.preferences] == ["good"]
    assert encoded.dropped == {"special-token": 1, "template": 1}
    assert encoded.read == 3


def test_a_cut_response_loses_its_closing_token_and_a_short_one_keeps_it() -> None:
    chat = oracle_format("llama")
    prompt_length = len(chat.prompt_ids([Message("user", "Hi")]))
    (example,) = encode_preferences(
        [preference(chosen="the otter finds a lantern")], chat, max_length=prompt_length + 3
    ).examples
    assert len(example.chosen_ids) == 3
    assert END not in example.chosen_ids
    assert example.rejected_ids[-1] == END


def test_merges_across_the_boundary_are_counted() -> None:
    """Where a role ends in a space, " the" is one token: the space moves into the response."""
    spaced = TEMPLATE.replace("|>\\n' + m['content']", "|> ' + m['content']")
    chat = templated(spaced.replace("<|assistant|>\\n", "<|assistant|> "))
    pairs = [preference(chosen="the", rejected="an"), preference(chosen="7", rejected="8")]
    encoded = encode_preferences(pairs, chat, max_length=64)
    assert encoded.num_merged == 1
    assert written(chat, pairs[0]) == (
        "<|user|> Hi<|end|>\n<|assistant|>",
        " the<|end|>",
        " an<|end|>",
    )


@pytest.mark.parametrize("max_length", [1, 8, 9, 10, 12, 64])
def test_no_kept_pair_is_longer_than_the_limit_or_empty(max_length: int) -> None:
    rows = [preference(chosen="the otter " * n, rejected="x", id=str(n)) for n in range(6)]
    encoded = encode_preferences(rows, oracle_format("llama"), max_length=max_length)
    assert encoded.read == len(encoded.examples) + sum(encoded.dropped.values())
    for prompt, chosen, rejected in encoded.examples:
        assert 0 < len(chosen) <= max_length - len(prompt)
        assert 0 < len(rejected) <= max_length - len(prompt)
