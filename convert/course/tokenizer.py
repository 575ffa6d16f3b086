"""The course's byte-pair tokenizer as a Hugging Face one that gives the same ids.

A ``g2c.bpe`` file lists special tokens and merges. Ids 0 to 255 are bytes, then come the special
tokens in order, then one id a merge. Text is split at special tokens, the longest first; the rest
becomes UTF-8 bytes, on which the merge with the lowest id goes first. Nothing is normalised and
nothing split at spaces. Hugging Face's BPE does the same with a byte-level alphabet and no pattern.
"""

import json
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.models.config import read_json

FORMAT = "g2c.bpe"
_NUM_BYTES = 256
_MAX_TOKEN_BYTES = 4096  # no real token is near it; merges that double would fill the memory
_END, _PAD = "<|end|>", "<|pad|>"
_CHAT_MARKERS = ("<|user|>", "<|assistant|>", _END)

# A conversation as the course writes it: no BOS, no EOS, no system turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + '<|end|>' }}"
    "{% else %}{{ raise_exception('this model knows the roles user and assistant, not '"
    " + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def read_tokenizer(path: Path) -> dict[str, Any]:
    """Read and check a ``g2c.bpe`` file.

    Raises:
        UsageError: If it is anything else, or its ids don't follow each other.
    """
    content = read_json(path)
    check_tokenizer(content, path)
    return content


def check_tokenizer(content: dict[str, Any], source: Path) -> None:
    """The checks of `read_tokenizer`, on content that `source` holds."""
    if content.get("format") != FORMAT or content.get("version") not in (1, 2):
        raise UsageError(
            f"{source}: expected format {FORMAT!r} version 1 or 2, found "
            f"{content.get('format')!r:.40} version {content.get('version')!r:.40}"
        )
    specials, merges = _specials(content), content.get("merges")
    if not _are_distinct_texts(specials):
        raise UsageError(f"{source}: special_tokens: expected a list of different texts")
    if not isinstance(merges, list):
        raise UsageError(f"{source}: merges: expected a list")
    first = _NUM_BYTES + len(specials)
    for new_id, merge in enumerate(merges, first):
        if not _is_merge(merge, new_id, range(_NUM_BYTES, first)):
            raise UsageError(
                f"{source}: merges[{new_id - first}]: expected [a, b, {new_id}] with a and b bytes "
                f"or earlier merges, found {merge!r:.80}"
            )


def _specials(content: dict[str, Any]) -> Any:
    return content.get("special_tokens", [])  # version 1 has none


def _are_distinct_texts(values: Any) -> bool:
    return (
        isinstance(values, list)
        and all(isinstance(value, str) and value for value in values)
        and len(set(values)) == len(values)
    )


def _is_merge(merge: Any, new_id: int, specials: range) -> bool:
    return (
        isinstance(merge, list)
        and [type(part) for part in merge] == [int, int, int]
        and merge[2] == new_id
        and all(0 <= part < new_id and part not in specials for part in merge[:2])
    )


def special_id(content: dict[str, Any], token: str) -> int | None:
    """The id of a special token, or None."""
    specials = _specials(content)
    return _NUM_BYTES + specials.index(token) if token in specials else None


def hugging_face_tokenizer(
    content: dict[str, Any], vocab_size: int, source: Path
) -> dict[str, Any]:
    """The content of a Hugging Face ``tokenizer.json`` that encodes identically.

    Args:
        content: A checked ``g2c.bpe`` file.
        vocab_size: Of the model; merges with ids beyond it are left out, as the course does.
        source: The file, for messages.

    Raises:
        UsageError: If bytes or special tokens lie beyond the model's vocabulary, or two ids stand
            for the same bytes.
    """
    specials = _specials(content)
    first = _NUM_BYTES + len(specials)
    if vocab_size < first:
        raise UsageError(
            f"{source}: the model's vocabulary of {vocab_size} has no room for 256 bytes and "
            f"{len(specials)} special tokens; expected at least {first}"
        )
    texts = dict(enumerate([*_byte_texts(), *specials]))
    merges = [merge for merge in content["merges"] if merge[2] < vocab_size]
    for a, b, new_id in merges:
        texts[new_id] = texts[a] + texts[b]
        if len(texts[new_id]) > _MAX_TOKEN_BYTES:
            raise UsageError(
                f"{source}: merge {new_id} makes a token of {len(texts[new_id])} bytes, more than "
                f"{_MAX_TOKEN_BYTES}"
            )
    vocab: dict[str, int] = {}
    for token_id, text in texts.items():
        if text in vocab:
            raise UsageError(
                f"{source}: ids {vocab[text]} and {token_id} stand for the same text {text!r:.60}, "
                "which a Hugging Face tokenizer can't hold"
            )
        vocab[text] = token_id
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(_NUM_BYTES + n, text) for n, text in enumerate(specials)],
        "normalizer": None,
        "pre_tokenizer": _byte_level(),
        "post_processor": None,
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[texts[a], texts[b]] for a, b, _ in merges],
        },
    }


def tokenizer_config(content: dict[str, Any], max_seq_len: int) -> dict[str, Any]:
    """The content of a ``tokenizer_config.json``: closing token, padding, the course's template."""
    specials = _specials(content)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
    }
    if _END in specials:
        config["eos_token"] = _END
    if _PAD in specials:
        config["pad_token"] = _PAD
    if all(marker in specials for marker in _CHAT_MARKERS):
        config["chat_template"] = CHAT_TEMPLATE
    return config


def write_tokenizer(
    content: dict[str, Any], folder: Path, *, vocab_size: int, max_seq_len: int, source: Path
) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into a folder.

    Raises:
        UsageError: As `hugging_face_tokenizer`.
    """
    files = {
        "tokenizer.json": hugging_face_tokenizer(content, vocab_size, source),
        "tokenizer_config.json": tokenizer_config(content, max_seq_len),
    }
    for name, data in files.items():
        text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _added_token(token_id: int, text: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": text, **flags, "special": True}


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }


def _byte_texts() -> list[str]:
    """The visible character that stands for each byte in Hugging Face's byte-level alphabet.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from 256 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(_NUM_BYTES) if byte not in visible]
    texts = {byte: chr(byte) for byte in visible}
    texts |= {byte: chr(_NUM_BYTES + number) for number, byte in enumerate(others)}
    return [texts[byte] for byte in range(_NUM_BYTES)]
