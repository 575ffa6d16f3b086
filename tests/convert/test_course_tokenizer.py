"""The course's tokenizer in Hugging Face's form: the same ids, for any text and any vocabulary."""

import json
import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from mlx_dpo.convert.course.tokenizer import (
    check_tokenizer,
    hugging_face_tokenizer,
    read_tokenizer,
    tokenizer_config,
    write_tokenizer,
)
from mlx_dpo.errors import UsageError
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.records import Message, Preference
from tests import g2c

PLACE = Path("tokenizer.json")
SPECIALS = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
OWN: dict[str, Any] = g2c.read(g2c.TOKENIZER)


def encode(content: dict[str, Any], vocab_size: int, text: str) -> list[int]:
    """The course's rule, word for word."""
    specials = {t: 256 + n for n, t in enumerate(content.get("special_tokens", []))}
    merges = {(a, b): new for a, b, new in content["merges"] if new < vocab_size}
    pattern = "|".join(re.escape(t) for t in sorted(specials, key=len, reverse=True))
    ids = []
    for piece in re.split(f"({pattern})", text) if specials else [text]:
        ids += [specials[piece]] if piece in specials else _merged([*piece.encode()], merges)
    return ids


def _merged(ids: list[int], merges: dict[tuple[int, int], int]) -> list[int]:
    while True:
        known = [pair for pair in pairwise(ids) if pair in merges]
        if not known:
            return ids
        best = min(known, key=lambda pair: merges[pair])
        out: list[int] = []
        i = 0
        while i < len(ids):
            if tuple(ids[i : i + 2]) == best:
                out.append(merges[best])
                i += 2
            else:
                out.append(ids[i])
                i += 1
        ids = out


@cache
def own_tokenizer(vocab_size: int) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(hugging_face_tokenizer(OWN, vocab_size, PLACE)))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


# Words of the training text, special tokens whole and broken, spaces, and anything else.
PIECES = st.sampled_from(
    [*OWN["special_tokens"], "<|", "|>", "<|end|", "the ", " return", "self.", "    ", "\n\n", "é"]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=8)), max_size=12).map("".join)


@given(TEXTS, st.sampled_from([599, 264, 265, 300, 450, 10_000]))
def test_any_text_is_encoded_as_the_course_encodes_it(text: str, vocab_size: int) -> None:
    found = ids_of(own_tokenizer(vocab_size), text)
    assert found == encode(OWN, vocab_size, text)
    assert all(token < vocab_size for token in found)
    assert own_tokenizer(vocab_size).decode(found, skip_special_tokens=False) == text


@st.composite
def tokenizers(draw: st.DrawFn) -> dict[str, Any]:
    """A small tokenizer of few letters, so that merges compete; no text is made twice."""
    specials = draw(st.sampled_from([SPECIALS, [], ["<|a|>", "<|a|><|b|>", "ab"]]))
    first = 256 + len(specials)
    texts = {byte: bytes([byte]) for byte in b"abc \xc3\xa9\n"}
    merges: list[list[int]] = []
    for _ in range(draw(st.integers(0, 12))):
        a, b = draw(st.sampled_from(sorted(texts))), draw(st.sampled_from(sorted(texts)))
        text = texts[a] + texts[b]
        if text in texts.values() or text.decode(errors="replace") in specials:
            continue
        new_id = first + len(merges)
        texts[new_id] = text
        merges.append([a, b, new_id])
    version: dict[str, Any] = {"version": 1}
    if specials:
        version = {"version": 2, "special_tokens": specials}
    return {"format": "g2c.bpe", **version, "merges": merges}


@given(tokenizers(), st.text("abc é\n<|>", max_size=30), st.integers(0, 14))
def test_any_tokenizer_and_vocabulary_will_do(
    content: dict[str, Any], text: str, fewer: int
) -> None:
    check_tokenizer(content, PLACE)
    first = 256 + len(content.get("special_tokens", []))
    vocab_size = max(first, first + len(content["merges"]) - fewer)
    converted = json.dumps(hugging_face_tokenizer(content, vocab_size, PLACE))
    tokenizer = Tokenizer.from_str(converted)
    assert ids_of(tokenizer, text) == encode(content, vocab_size, text)


@pytest.mark.parametrize("vocab_size", [599, 400, 264])
def test_no_id_is_beyond_the_model(vocab_size: int) -> None:
    assert own_tokenizer(vocab_size).get_vocab_size() == vocab_size


# --- The folder ----------------------------------------------------------------------------------


@pytest.fixture
def folder_tokenizer(tmp_path: Path) -> Any:
    write_tokenizer(OWN, tmp_path, vocab_size=599, max_seq_len=128, source=PLACE)
    return PreTrainedTokenizerFast.from_pretrained(tmp_path)


def test_transformers_reads_the_folder_and_gives_the_ids_of_the_course(
    folder_tokenizer: Any,
) -> None:
    rows = g2c.read(g2c.FOLDER / "preferences.json")
    for row, expected in zip(rows, g2c.expected()["encoded"], strict=True):
        question = [{"role": "user", "content": row["user"]}]
        text = folder_tokenizer.apply_chat_template(
            question, tokenize=False, add_generation_prompt=True
        )
        assert text == expected["prompt_text"]
        for key, part in (
            ("prompt_ids", text),
            ("chosen_ids", row["chosen"] + "<|end|>"),
            ("rejected_ids", row["rejected"] + "<|end|>"),
        ):
            assert folder_tokenizer.encode(part, add_special_tokens=False) == expected[key]
            assert folder_tokenizer.encode(part) == expected[key]


def test_an_answer_is_closed_and_padded_as_in_the_course(folder_tokenizer: Any) -> None:
    assert (folder_tokenizer.eos_token_id, folder_tokenizer.pad_token_id) == (262, 263)
    assert (folder_tokenizer.eos_token, folder_tokenizer.pad_token) == ("<|end|>", "<|pad|>")
    assert folder_tokenizer.bos_token is None
    assert folder_tokenizer.model_max_length == 128
    chat = chat_format(folder_tokenizer)
    assert (chat.closing_id, chat.closing_text, chat.has_template) == (262, "<|end|>", True)
    question, answer = Message("user", "a"), Message("assistant", "b")
    assert chat.prompt_text((question,)) == "<|user|>\na\n<|assistant|>\n"
    pair = Preference((question,), (answer,), (Message("assistant", "c"),), kind="", id="1")
    example, _ = chat.encode_pair(pair)
    assert chat.tokenizer.decode(example.chosen_ids) == "b<|end|>"


def test_turns_are_put_together_without_anything_between(folder_tokenizer: Any) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    text = folder_tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|user|>\na\n<|assistant|>\nb<|end|><|user|>\nc\n<|assistant|>\n"


def test_a_role_the_course_does_not_have_is_refused(folder_tokenizer: Any) -> None:
    with pytest.raises(Exception, match="not system"):
        folder_tokenizer.apply_chat_template([{"role": "system", "content": "a"}], tokenize=False)


def test_a_tokenizer_without_the_course_s_markers_has_no_template() -> None:
    config = tokenizer_config({"format": "g2c.bpe", "version": 1, "merges": []}, 16)
    assert config.keys().isdisjoint({"chat_template", "eos_token", "pad_token", "bos_token"})


# --- What is refused -----------------------------------------------------------------------------


def altered(**changes: Any) -> dict[str, Any]:
    small = {"format": "g2c.bpe", "version": 2, "special_tokens": SPECIALS}
    return {**small, "merges": [[97, 98, 261], [261, 99, 262]], **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (altered(format="bpe"), "found 'bpe' version 2"),
        (altered(version=3), "version 3"),
        (altered(version=None), "version None"),
        (altered(special_tokens="ab"), "special_tokens"),
        (altered(special_tokens=["a", "a"]), "special_tokens"),
        (altered(special_tokens=["a", ""]), "special_tokens"),
        (altered(special_tokens={"a": 256}), "special_tokens"),
        (altered(merges={}), "merges: expected a list"),
        (altered(merges=[[97, 98]]), "merges[0]: expected [a, b, 261]"),
        (altered(merges=[[97, 98, 262]]), "merges[0]: expected [a, b, 261]"),
        (altered(merges=[[97, 98, 261], [97, 98, 261]]), "merges[1]"),
        (altered(merges=[[97, 261, 261]]), "merges[0]"),
        (altered(merges=[[-1, 98, 261]]), "merges[0]"),
        (altered(merges=[[256, 98, 261]]), "merges[0]"),
        (altered(merges=[[97.0, 98, 261]]), "merges[0]"),
        (altered(merges=[[True, 98, 261]]), "merges[0]"),
        (altered(merges=["abc"]), "merges[0]"),
    ],
)
def test_a_file_that_is_no_tokenizer_of_the_course_is_refused(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError) as raised:
        read_tokenizer(path)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"format": "g2c.bpe"}'])
def test_a_broken_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        read_tokenizer(path)


def test_a_vocabulary_without_room_for_the_special_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="expected at least 264"):
        hugging_face_tokenizer(OWN, 263, PLACE)


def test_two_ids_for_the_same_bytes_are_refused() -> None:
    """(ab)c and a(bc): the course tells them apart, a Hugging Face tokenizer can't."""
    merges = [[97, 98, 261], [98, 99, 262], [261, 99, 263], [97, 262, 264]]
    content = altered(merges=merges)
    with pytest.raises(UsageError, match="ids 263 and 264 stand for the same text 'abc'"):
        hugging_face_tokenizer(content, 265, PLACE)
    hugging_face_tokenizer(content, 264, PLACE)  # the model never learned the second


def test_merges_that_double_are_refused_before_they_fill_the_memory() -> None:
    merges = [[97, 97, 261], *([n, n, n + 1] for n in range(261, 321))]
    content = {"format": "g2c.bpe", "version": 2, "special_tokens": SPECIALS, "merges": merges}
    with pytest.raises(UsageError, match="merge 273 makes a token of 8192 bytes"):
        hugging_face_tokenizer(content, 400, PLACE)
