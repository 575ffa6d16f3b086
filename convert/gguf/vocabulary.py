"""The tokenizer of a model folder as GGUF describes it.

llama.cpp does not read ``tokenizer.json``: it has the splitting rules of known tokenizers built in,
and a file names one of them. Which one follows from the rules in ``tokenizer.json``; a
tokenizer with other rules is refused, since it would give other tokens.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.convert.gguf.pieces import scores_of, space_before
from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.worker import encode
from mlx_dpo.records import Message

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
_REST = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
_THREE_DIGITS = f"{_CONTRACTIONS}\\p{{N}}{{1,3}}{_REST}"
_ONE_DIGIT = f"{_CONTRACTIONS}\\p{{N}}{_REST}"

# Names in llama.cpp of what a pre-tokenizer does, and of merges that a whole word leaves out.
_RULES = {
    ("bytes", False): "gpt-2",
    ("digits bytes", False): "smollm",
    (_THREE_DIGITS, True): "llama-bpe",
    (_THREE_DIGITS, False): "smaug-bpe",
    (_ONE_DIGIT, False): "qwen2",
}
_FORGOTTEN = ("qwen2",)  # these normalise to NFC, which llama.cpp leaves out

# As `gguf.TokenType`.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_NAMED = ("bos", "eos", "pad", "unk")  # of what a tokenizer names
_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")
_PIECES = "default"  # llama.cpp's rule for pieces, which are not split before
_BARE = ("<unk>", "<s>", "<|endoftext|>")  # special tokens of a Phi-3 that leave spaces alone
_LAST = -1e9  # score of a piece that nothing is joined to


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        rule: Name of the splitting rule in llama.cpp; ``default`` where pieces have scores.
        tokens: By id; one for each row of the embeddings.
        kinds: As many of `gguf.TokenType`.
        merges: Pairs of byte-pair encoding, with a space between; none where pieces have scores.
        scores: Of as many pieces; none where there are merges.
        ids: Of special tokens, by ``bos``, ``eos``, ``eot``, ``pad`` and ``unk``.
        adds_bos: Whether the tokenizer puts the first of them before a text.
        adds_space: Whether it puts a space there.
        is_alike: Whether llama.cpp makes the same tokens of all texts; False: of conversations.
        is_stripping: Whether special tokens take spaces after them away, but for `_BARE`.
        chat_template: Jinja; None where the folder has none.
    """

    rule: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    scores: list[float]
    ids: dict[str, int]
    adds_bos: bool
    adds_space: bool
    is_alike: bool
    is_stripping: bool
    chat_template: str | None

    def add_to(self, writer: Any) -> None:
        """Give it to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model("llama" if self.scores else "gpt2")
        writer.add_tokenizer_pre(self.rule)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.adds_space)
        else:
            writer.add_token_merges(self.merges)
        for name, number in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, chat: ChatFormat, rows: int) -> Vocabulary:
    """Read the tokenizer of a model folder.

    Args:
        folder: For messages.
        chat: Its conversation format, with a tokenizer of byte-pair encoding.
        rows: Of the model's table of tokens.

    Raises:
        UsageError: If llama.cpp has no such tokenizer, or it has more tokens than there are rows.
    """
    content = _content(chat.tokenizer)
    model = content.get("model", {})
    if (kind := model.get("type")) != "BPE":
        raise UsageError(
            f"{folder}: its tokenizer is {_shown(kind)}, and GGUF is written here with BPE alone; "
            "--to mlx or --to torch writes the model with its own tokenizer"
        )
    scores, adds_space, is_alike = None, False, True
    if model.get("byte_fallback"):
        rule = _PIECES
        scores, adds_space, is_alike = _scores(content, model, folder, chat)
    else:
        rule = _rule(content, model, folder)
    added = {each["id"]: each for each in content.get("added_tokens", [])}
    names = {number: token for token, number in model["vocab"].items()}
    names |= {number: each["content"] for number, each in added.items()}
    if max(names) >= rows:
        raise UsageError(
            f"{folder}: its tokenizer has an id {max(names)}, and the model has {rows} tokens"
        )
    tokens = [names.get(number, f"[PAD{number}]") for number in range(rows)]
    unknown = model["vocab"].get(model.get("unk_token"))
    kinds = [_kind(number, names, added, unknown) for number in range(rows)]
    if scores is not None:
        kinds = [
            _BYTE if kind == _NORMAL and _BYTE_NAME.fullmatch(token) else kind
            for kind, token in zip(kinds, tokens, strict=True)
        ]
    ids = {name: getattr(chat.tokenizer, f"{name}_token_id", None) for name in _NAMED}
    if chat.closing_id != ids["eos"]:
        ids["eot"] = chat.closing_id
    bos = ids["bos"]
    (first, *_) = encode(chat.tokenizer, ["a"], add_special_tokens=True)[0]
    return Vocabulary(
        rule=rule,
        tokens=tokens,
        kinds=kinds,
        merges=[each if isinstance(each, str) else " ".join(each) for each in model["merges"]],
        scores=[scores.get(token, _LAST) for token in tokens] if scores is not None else [],
        ids={name: number for name, number in ids.items() if number is not None},
        adds_bos=first == bos,
        adds_space=adds_space,
        is_alike=is_alike,
        is_stripping=_is_stripping(added.values(), set(names.values()), folder),
        chat_template=_template(chat.tokenizer),
    )


def _kind(number: int, names: dict[int, str], added: dict[int, Any], unknown: int | None) -> int:
    if number == unknown:
        return _UNKNOWN
    if number in added:
        return _CONTROL if added[number].get("special") else _USER_DEFINED
    return _NORMAL if number in names else _UNUSED


def _content(tokenizer: Any) -> dict[str, Any]:
    """The ``tokenizer.json`` that a tokenizer works by; empty for one that is written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    return found


def _is_stripping(added: Collection[dict[str, Any]], tokens: set[str], folder: Path) -> bool:
    """Whether tokens take spaces after them away, all those for which llama.cpp can be told so.

    Raises:
        UsageError: If others do.
    """
    stripping = [each for each in added if each.get("lstrip") or each.get("rstrip")]
    if not stripping:
        return False
    wanted = all(bool(e.get("rstrip")) == (e["content"] not in _BARE) for e in added)
    if wanted and {"</s>", *_BARE} <= tokens and not any(e.get("lstrip") for e in added):
        return True
    raise UsageError(
        f"{folder}: its token {stripping[0]['content']} takes the spaces beside it away, which "
        "GGUF says of all special tokens of a Phi-3 or of none; --to mlx or --to torch writes the "
        "model with its own tokenizer"
    )


def _scores(
    content: dict[str, Any], model: dict[str, Any], folder: Path, chat: ChatFormat
) -> tuple[dict[str, float], bool, bool]:
    """Scores of pieces, whether a space comes before a text, and whether before any text."""
    spaces, scores = space_before(content, _spoken(chat)), scores_of(model)
    if spaces is None or scores is None:
        raise UsageError(
            f"{folder}: llama.cpp is not known to make the pieces of this tokenizer "
            f"({_shown(content.get('normalizer'))}, {_shown(content.get('pre_tokenizer'))}): GGUF "
            "would give other tokens; --to mlx or --to torch writes the model with its own "
            "tokenizer"
        )
    return scores, *spaces


def _spoken(chat: ChatFormat) -> list[str]:
    """Two conversations; none where the template refuses them."""
    first = (Message("user", "Hi there."),)
    second = (*first, Message("assistant", "Hello."), Message("user", " Who\nare you?"))
    try:
        return [chat.prompt_text(first), chat.prompt_text(second)]
    except DataError:
        return []


def _template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def _rule(content: dict[str, Any], model: dict[str, Any], folder: Path) -> str:
    """The name in llama.cpp of how a tokenizer splits a text before its merges."""
    before = content.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before]) if isinstance(before, dict) else []
    known = _RULES.get((_described(steps), bool(model.get("ignore_merges"))))
    normaliser = content.get("normalizer")
    forgotten = isinstance(normaliser, dict) and (
        normaliser.get("type") == "NFC" or normaliser.get("normalizers") == []
    )
    if known and (normaliser is None or (forgotten and known in _FORGOTTEN)):
        return known
    raise UsageError(
        f"{folder}: llama.cpp is not known to split texts as this tokenizer does "
        f"({_shown(normaliser)}, {_shown(before)}): GGUF would give other tokens; --to mlx or "
        "--to torch writes the model with its own tokenizer"
    )


def _described(steps: list[dict[str, Any]]) -> str:
    """A splitting rule in one word or its regular expression; empty for those not known."""
    parts = []
    for step in steps:
        kind = step.get("type")
        if kind == "ByteLevel" and not step.get("add_prefix_space"):
            parts += ["bytes"] if step.get("use_regex", True) else [""]
        elif kind == "Digits" and step.get("individual_digits"):
            parts.append("digits")
        elif (
            kind == "Split"
            and step.get("behavior") == "Isolated"
            and not step.get("invert")
            and isinstance(step.get("pattern"), dict)
        ):
            parts.append(str(step["pattern"].get("Regex")))
        else:
            return ""
    # Bytes without a rule of their own come last and say only that there are bytes.
    is_last = parts[-1:] == [""] and "" not in parts[:-1] and len(parts) > 1
    return " ".join(parts[:-1] if is_last else parts if "" not in parts else [])


def _shown(value: Any) -> str:
    return f"{json.dumps(value):.80}"
