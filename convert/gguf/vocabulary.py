"""The tokenizer of a model folder in the words of GGUF.

llama.cpp does not read ``tokenizer.json``: it has the splitting rules of known tokenizers built in,
and a file names one of them. Which one is told by the rules in ``tokenizer.json`` themselves; a
tokenizer with other rules is refused, since it would give other tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_dpo.errors import UsageError
from mlx_dpo.models.hub import MAX_TOKENIZER, read_json
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.preferences.worker import encode

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
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        rule: Name of the splitting rule in llama.cpp.
        tokens: By id; one for each row of the embeddings.
        kinds: As many of `gguf.TokenType`.
        merges: Pairs of byte-pair encoding, with a space between.
        ids: Of special tokens, by ``bos``, ``eos``, ``eot`` and ``pad``.
        adds_bos: Whether the tokenizer puts the first of them before a text.
        chat_template: Jinja; None where the folder has none.
    """

    rule: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    ids: dict[str, int]
    adds_bos: bool
    chat_template: str | None

    def add_to(self, writer: Any) -> None:
        """Give it to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.rule)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        for name, number in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, chat: ChatFormat, rows: int) -> Vocabulary:
    """Read the tokenizer of a model folder.

    Args:
        folder: With a ``tokenizer.json`` of byte-pair encoding over bytes.
        chat: Its conversation format.
        rows: Of the model's table of tokens.

    Raises:
        UsageError: If llama.cpp has no such tokenizer, or it has more tokens than there are rows.
    """
    content = read_json(folder / "tokenizer.json", MAX_TOKENIZER)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = model.get("type") if isinstance(model, dict) else None
        raise UsageError(
            f"{folder}: its tokenizer is {_shown(kind)}, and GGUF is written here with byte-level "
            "BPE alone; --to mlx or --to torch writes the model with its own tokenizer"
        )
    rule = _rule(content, model, folder)
    added = {each["id"]: each for each in content.get("added_tokens", [])}
    names = {number: token for token, number in model["vocab"].items()}
    names |= {number: each["content"] for number, each in added.items()}
    if max(names) >= rows:
        raise UsageError(
            f"{folder}: its tokenizer has an id {max(names)}, and the model has {rows} tokens"
        )
    kinds = [_kind(number, names, added) for number in range(rows)]
    tokenizer = chat.tokenizer
    ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    if chat.closing_id != ids["eos"]:
        ids["eot"] = chat.closing_id
    bos = ids["bos"]
    return Vocabulary(
        rule=rule,
        tokens=[names.get(number, f"[PAD{number}]") for number in range(rows)],
        kinds=kinds,
        merges=[each if isinstance(each, str) else " ".join(each) for each in model["merges"]],
        ids={name: number for name, number in ids.items() if number is not None},
        adds_bos=bos is not None and encode(tokenizer, ["a"], add_special_tokens=True)[0][0] == bos,
        chat_template=_template(tokenizer),
    )


def _kind(number: int, names: dict[int, str], added: dict[int, Any]) -> int:
    if number in added:
        return _CONTROL if added[number].get("special") else _USER_DEFINED
    return _NORMAL if number in names else _UNUSED


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
