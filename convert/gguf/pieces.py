"""Tokenizers of SentencePiece's kind as GGUF describes them: scores of pieces in place of merges.

llama.cpp joins the two neighbours whose joined piece has the best score; ``tokenizer.json`` lists
the pairs that may be joined, the best first. Both give the same tokens where the list has every
pair that makes a piece, and all pairs of a piece together.
"""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from mlx_dpo.preferences.worker import encode

SPACE = "\u2581"  # written for a space
_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPENDED = {"type": "Prepend", "prepend": SPACE}
_BOTH = {"type": "Sequence", "normalizers": [_PREPENDED, _REPLACED]}
_METASPACE = {"type": "Metaspace", "replacement": SPACE, "split": False}
_KEPT_TOGETHER = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_PLAIN = ("Hello there.", " and a text that goes on")


def space_before(content: dict[str, Any], spoken: Sequence[str]) -> tuple[bool, bool] | None:
    """Whether llama.cpp is to put a space before a text, and each time after a special token.

    Args:
        content: Of ``tokenizer.json``.
        spoken: Conversations as the model's chat format writes them.

    Returns:
        That, and whether all texts get the tokenizer's tokens; False: `spoken` do, and others may
        have a space more or less. None where llama.cpp does not make the tokens of `spoken`.
    """
    before, normaliser = content.get("pre_tokenizer"), content.get("normalizer")
    if before in (None, _KEPT_TOGETHER):  # which has nothing to split
        if normaliser == _REPLACED:
            return False, True
        return (True, True) if normaliser == _BOTH else None
    is_known = isinstance(before, dict) and before == _METASPACE | {
        "prepend_scheme": before.get("prepend_scheme")
    }
    if not is_known or normaliser is not None:
        return None
    if before["prepend_scheme"] == "never":
        return False, True
    expected, others = _encoded(content, spoken), _encoded(content, _PLAIN)
    for adds_space, theirs in ((False, _REPLACED), (True, _BOTH)):
        changed = content | {"pre_tokenizer": None, "normalizer": theirs}
        if _encoded(changed, spoken) == expected:
            return adds_space, _encoded(changed, _PLAIN) == others
    return None


def scores_of(model: dict[str, Any]) -> dict[str, float] | None:
    """Scores of joined pieces, the best 0; None where no scores give the tokens of the merges.

    Args:
        model: Of ``tokenizer.json``, with byte-pair encoding.
    """
    scores: dict[str, float] = {}
    pairs: set[tuple[str, str]] = set()
    last = None
    for each in model["merges"]:
        left, right = each if isinstance(each, list) else each.split(" ", 1)
        piece = left + right
        if piece != last and piece in scores:
            return None  # its pairs are not together
        scores.setdefault(piece, -float(len(scores)))
        pairs.add((left, right))
        last = piece
    vocabulary = model["vocab"]
    for piece in scores:
        for cut in range(1, len(piece)):
            parts = piece[:cut], piece[cut:]
            if parts not in pairs and parts[0] in vocabulary and parts[1] in vocabulary:
                return None  # llama.cpp would join them
    return scores


def _encoded(content: dict[str, Any], texts: Sequence[str]) -> list[list[int]]:
    """Ids by another ``tokenizer.json``."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(json.dumps(content))
    return encode(SimpleNamespace(backend_tokenizer=backend, split_special_tokens=False), texts)
