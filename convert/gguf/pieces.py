"""Tokenizers of SentencePiece's kind in the words of GGUF: scores of pieces in place of merges.

llama.cpp joins the two neighbours whose joined piece has the best score; ``tokenizer.json`` lists
the pairs that may be joined, the best first. Both give the same tokens where the list has every
pair that makes a piece, and all pairs of a piece together.
"""

from typing import Any

SPACE = "\u2581"  # written for a space
_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPENDED = {"type": "Prepend", "prepend": SPACE}
_KEPT_TOGETHER = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def space_before(content: dict[str, Any]) -> bool | None:
    """Whether a tokenizer puts a space before a text; None where it does what llama.cpp does not.

    Args:
        content: Of ``tokenizer.json``.
    """
    if content.get("pre_tokenizer") not in (None, _KEPT_TOGETHER):  # which has nothing to split
        return None
    normaliser = content.get("normalizer")
    if normaliser == _REPLACED:
        return False
    is_both = normaliser == {"type": "Sequence", "normalizers": [_PREPENDED, _REPLACED]}
    return True if is_both else None


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
