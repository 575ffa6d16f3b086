"""The shapes in which other people keep preferences: how each is known, and how it becomes rows.

A format takes a row as its file has it and gives rows of the project's own shape, which the
project's reader then checks. What can't be a pair is left out with a reason, never guessed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from mlx_dpo.workshop.importers.ranked import (
    RANKED_FORMATS,
    is_scored,
    is_tree,
    scored_rows,
    tree_rows,
)
from mlx_dpo.workshop.importers.turns import (
    LeftOutError,
    Turns,
    is_transcript,
    prompt_and_answers,
    transcript_turns,
)

Row = dict[str, Any]

_PROMPTS = ("prompt", "question", "instruction", "input", "query", "user")
_SYSTEMS = ("system", "system_prompt")
_CHOSEN = ("chosen", "chosen_response", "response_chosen")
_REJECTED = ("rejected", "rejected_response", "response_rejected")


@dataclass(frozen=True)
class Format:
    """One shape.

    Attributes:
        name: What ``--format`` calls it.
        about: Whose it is, in a few words.
        fits: Whether a row has this shape.
        rows: A row's pairs, as rows of our own; raises `LeftOutError`. The second argument says
            whether all pairs of a ranking are wanted, or best against worst only.
    """

    name: str
    about: str
    fits: Callable[[Row], bool]
    rows: Callable[[Row, bool], list[Row]]


def detect(row: Any) -> Format | None:
    """The format of a row; None where it has no known shape."""
    if not isinstance(row, dict):
        return None
    return next((known for known in FORMATS.values() if known.fits(row)), None)


def _is_hh(row: Row) -> bool:
    return all(is_transcript(row.get(key)) for key in ("chosen", "rejected"))


def _hh_rows(row: Row, _: bool) -> list[Row]:
    if not _is_hh(row):
        raise LeftOutError("wrong-type", "'chosen' and 'rejected' must be transcripts")
    return [prompt_and_answers(*(transcript_turns(row[key]) for key in ("chosen", "rejected")))]


def _is_columns(row: Row) -> bool:
    return all(_first(row, keys) is not None for keys in (_PROMPTS[1:5], _CHOSEN, _REJECTED)) or (
        "prompt" in row and "chosen" not in row and _first(row, _CHOSEN[1:]) is not None
    )


def _columns_rows(row: Row, all_pairs: bool) -> list[Row]:
    """``question`` or ``instruction``, ``system``, ``chosen_response`` and the like."""
    if row.get("status") == "tie":
        raise LeftOutError("tie", "marked as a tie")
    same: Row = {key: row[key] for key in ("kind", *_SCORES) if row.get(key) is not None}
    for key, names in (("prompt", _PROMPTS), ("chosen", _CHOSEN), ("rejected", _REJECTED)):
        name = _first(row, names)
        if name is not None:
            same[key] = row[name]
    if _first(row, _PROMPTS) == "instruction" and isinstance(row.get("input"), str):
        # Alpaca's custom: what the instruction is about stands in a column of its own.
        same["prompt"] = f"{row['instruction']}\n{row['input']}".rstrip("\n")
    system = _first(row, _SYSTEMS)
    if system is not None and row[system] and "prompt" in same:
        same["prompt"] = [{"role": "system", "content": row[system]}, *_as_turns(same["prompt"])]
    return _trl_rows(same, all_pairs)


def _is_trl(row: Row) -> bool:
    return "chosen" in row and "rejected" in row


_SCORES = ("score_chosen", "score_rejected")


def _trl_rows(row: Row, _: bool) -> list[Row]:
    """Prompt given or implied, texts or messages; UltraFeedback's mixture of both too."""
    scores = [row.get(key) for key in _SCORES]
    if None not in scores and scores[0] == scores[1]:
        raise LeftOutError("tie", f"both answers have the score {scores[0]}")
    key = "user" if "user" in row and "prompt" not in row else "prompt"
    names = (key, "chosen", "rejected", "kind")
    ours = {name: row[name] for name in names if row.get(name) is not None}
    prompt, chosen, rejected = (row.get(name) for name in names[:3])
    if _are_turns(chosen) and _are_turns(rejected):
        if prompt is None or _begins_with(chosen, _as_turns(prompt)):
            return [ours | prompt_and_answers(chosen, rejected)]
    elif prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        raise LeftOutError(
            "no-common-prompt", "there is no prompt, and plain texts have no turns to share"
        )
    if is_transcript(prompt):
        turns = transcript_turns(prompt)
        if turns[-1] == {"role": "assistant", "content": ""}:
            ours[key] = turns[:-1]
    return [ours]


def _as_turns(prompt: Any) -> list[Any]:
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]


def _are_turns(value: Any) -> TypeGuard[Turns]:
    return isinstance(value, list) and all(isinstance(turn, dict) for turn in value)


def _begins_with(dialogue: list[Any], prompt: list[Any]) -> bool:
    return 0 < len(prompt) < len(dialogue) and dialogue[: len(prompt)] == prompt


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


# In the order in which a row is tried: the most particular shape first.
FORMATS = {
    known.name: known
    for known in (
        Format("tree", RANKED_FORMATS["tree"], is_tree, tree_rows),
        Format("scored", RANKED_FORMATS["scored"], is_scored, scored_rows),
        Format("hh-rlhf", "transcripts with an implicit prompt", _is_hh, _hh_rows),
        Format(
            "columns", "question or instruction, chosen_response ...", _is_columns, _columns_rows
        ),
        Format("trl", "prompt given or implied, chosen, rejected", _is_trl, _trl_rows),
    )
}
