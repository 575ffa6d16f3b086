"""The shapes of other people's preference data: how each is recognized, and the pairs in its rows.

A format turns a row of a source into rows with this project's keys (``prompt``, ``chosen``,
``rejected``, ``kind``), which the preference reader then checks. A row that can't be a pair is left
out with a reason, never guessed.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeGuard

Fields = dict[str, Any]  # a row, by key or column
Turns = list[dict[str, Any]]
ScoredAnswers = list[tuple[float, Any]]  # higher is better

_PROMPTS = ("prompt", "question", "instruction", "input", "query", "user")
_SYSTEMS = ("system", "system_prompt")
_CHOSEN = ("chosen", "chosen_response", "response_chosen")
_REJECTED = ("rejected", "rejected_response", "response_rejected")
_PAIR_SCORES = ("score_chosen", "score_rejected")
_COMPLETIONS = ("completions", "responses")
_COMPLETION_TEXTS = ("text", "completion", "response", "content")
_COMPLETION_SCORES = ("score", "overall_score", "rating")
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}
_TREE_ROLES = {"prompter": "user", "assistant": "assistant"}


class LeftOutError(Exception):
    """A row without a usable pair; `code` is a key of `preferences.schema.LEVELS`."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Format:
    """One shape of rows.

    `rows` gives the pairs of a row, as rows with this project's keys; it raises `LeftOutError`. Its
    second argument says whether a ranking gives all its pairs, or best against worst only.
    """

    name: str  # for --format
    about: str
    fits: Callable[[Fields], bool]  # whether a row has this shape
    rows: Callable[[Fields, bool], list[Fields]]


def detect(row: Any) -> Format | None:
    """The format of a row; None if the shape is not known."""
    if not isinstance(row, dict):
        return None
    return next((known for known in FORMATS.values() if known.fits(row)), None)


# Transcripts: "\n\nHuman: ... \n\nAssistant: ..." (Anthropic's hh-rlhf).


def _is_hh(row: Fields) -> bool:
    return _is_transcript(row.get("chosen")) and _is_transcript(row.get("rejected"))


def _hh_rows(row: Fields, _: bool) -> list[Fields]:
    if not _is_hh(row):
        raise LeftOutError("wrong-type", "'chosen' and 'rejected' must be transcripts")
    return [_split_dialogues(*(_transcript_turns(row[key]) for key in ("chosen", "rejected")))]


def _is_transcript(text: Any) -> TypeGuard[str]:
    return isinstance(text, str) and _SPEAKER.match(text) is not None


def _transcript_turns(text: str) -> Turns:
    _, *parts = _SPEAKER.split(text)
    return [
        {"role": _TRANSCRIPT_ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _split_dialogues(chosen: Turns, rejected: Turns) -> Fields:
    """Prompt and two answers of dialogues that differ in the assistant's last turn alone."""
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if len(turns) < 2 or turns[-1].get("role") != "assistant":
            raise LeftOutError(
                "no-common-prompt", f"{name!r} is no dialogue that ends with the assistant's turn"
            )
    if chosen[:-1] != rejected[:-1]:
        raise LeftOutError(
            "no-common-prompt",
            "chosen and rejected differ before the last answer; they answer different prompts",
        )
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


# Columns with other names: `question` or `instruction`, `system`, `chosen_response`.


def _is_columns(row: Fields) -> bool:
    return all(_first(row, keys) is not None for keys in (_PROMPTS[1:5], _CHOSEN, _REJECTED)) or (
        "prompt" in row and "chosen" not in row and _first(row, _CHOSEN[1:]) is not None
    )


def _columns_rows(row: Fields, all_pairs: bool) -> list[Fields]:
    if row.get("status") == "tie":
        raise LeftOutError("tie", "marked as a tie")
    renamed: Fields = {key: row[key] for key in ("kind", *_PAIR_SCORES) if row.get(key) is not None}
    for key, names in (("prompt", _PROMPTS), ("chosen", _CHOSEN), ("rejected", _REJECTED)):
        name = _first(row, names)
        if name is not None:
            renamed[key] = row[name]
    if _first(row, _PROMPTS) == "instruction" and isinstance(row.get("input"), str):
        # Alpaca's convention: the text that the instruction is about has a column of its own.
        renamed["prompt"] = f"{row['instruction']}\n{row['input']}".rstrip("\n")
    system = _first(row, _SYSTEMS)
    if system is not None and row[system] and "prompt" in renamed:
        system_turn = {"role": "system", "content": row[system]}
        renamed["prompt"] = [system_turn, *_as_turns(renamed["prompt"])]
    return _trl_rows(renamed, all_pairs)


# TRL: prompt given or implied, texts or messages, and UltraFeedback-binarized's mixture of both.


def _is_trl(row: Fields) -> bool:
    return "chosen" in row and "rejected" in row


def _trl_rows(row: Fields, _: bool) -> list[Fields]:
    scores = [row.get(key) for key in _PAIR_SCORES]
    if None not in scores and scores[0] == scores[1]:
        raise LeftOutError("tie", f"both answers have the score {scores[0]}")
    prompt_key = "user" if "user" in row and "prompt" not in row else "prompt"
    names = (prompt_key, "chosen", "rejected", "kind")
    fields = {name: row[name] for name in names if row.get(name) is not None}
    prompt, chosen, rejected = (row.get(name) for name in names[:3])
    if _are_turns(chosen) and _are_turns(rejected):
        shared = len(_as_turns(prompt))
        if prompt is None or (0 < shared < len(chosen) and chosen[:shared] == _as_turns(prompt)):
            return [fields | _split_dialogues(chosen, rejected)]
    elif prompt is None and isinstance(chosen, str) and isinstance(rejected, str):
        raise LeftOutError(
            "no-common-prompt", "there is no prompt, and plain texts have no turns to share"
        )
    if _is_transcript(prompt):
        turns = _transcript_turns(prompt)
        if turns[-1] == {"role": "assistant", "content": ""}:
            fields[prompt_key] = turns[:-1]
    return [fields]


def _as_turns(prompt: Any) -> list[Any]:
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]


def _are_turns(value: Any) -> TypeGuard[Turns]:
    return isinstance(value, list) and all(isinstance(turn, dict) for turn in value)


# Scores: {"prompt": ..., "completions": [{"text": ..., "score": ...}, ...]}.


def _is_scored(row: Fields) -> bool:
    completions = _completions(row)
    return bool(completions) and all(isinstance(entry, dict) for entry in completions)


def _scored_rows(row: Fields, all_pairs: bool) -> list[Fields]:
    prompt = row.get("prompt") or row.get("instruction")
    if not prompt:
        raise LeftOutError("missing-key", "key 'prompt' is missing")
    scored: ScoredAnswers = []
    for entry in _completions(row):
        if isinstance(entry, dict):
            text = next((entry[key] for key in _COMPLETION_TEXTS if key in entry), None)
            score = next((_number(entry[key]) for key in _COMPLETION_SCORES if key in entry), None)
            if text is not None and score is not None:
                scored.append((score, text))
    shared = {"prompt": prompt} | ({"kind": row["kind"]} if row.get("kind") else {})
    return [shared | pair for pair in _ranked_pairs(scored, all_pairs)]


def _completions(row: Fields) -> list[Any]:
    return next((row[key] for key in _COMPLETIONS if isinstance(row.get(key), list)), [])


# OpenAssistant's trees: at each prompter's message, the assistant's replies by rank, 0 the best.
# Deleted and unranked replies are not used.


def _is_tree(row: Fields) -> bool:
    return isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def _tree_rows(row: Fields, all_pairs: bool) -> list[Fields]:
    if not _is_tree(row):
        raise LeftOutError("wrong-type", "'prompt' must be a message with 'replies'")
    rows: list[Fields] = []
    left_out = LeftOutError("no-pair", "no message has two ranked replies")
    for turns, replies in _branchings(row["prompt"]):
        ranked: ScoredAnswers = [
            (-rank, reply["text"])
            for reply in replies
            if (rank := _number(reply.get("rank"))) is not None and not reply.get("deleted")
        ]
        if len(ranked) > 1:
            try:
                rows += [{"prompt": turns} | pair for pair in _ranked_pairs(ranked, all_pairs)]
            except LeftOutError as error:
                left_out = error
    if not rows:
        raise left_out
    return rows


def _branchings(root: Fields) -> Iterator[tuple[Turns, list[Fields]]]:
    """Each conversation that ends with a prompter's message, and the assistant's replies to it."""
    waiting: list[tuple[Turns, Any]] = [([], root)]
    while waiting:
        before, message = waiting.pop()
        role = _tree_role(message)
        if role is None or not isinstance(message.get("replies"), list):
            continue
        turns = [*before, {"role": role, "content": message["text"]}]
        if role == "user":
            yield turns, [reply for reply in message["replies"] if _tree_role(reply) == "assistant"]
        waiting += [(turns, reply) for reply in reversed(message["replies"])]


def _tree_role(message: Any) -> str | None:
    """The role of a message of a tree; None if it is not a message with a text."""
    if not isinstance(message, dict) or not isinstance(message.get("text"), str):
        return None
    return _TREE_ROLES.get(str(message.get("role")))


def _ranked_pairs(scored: ScoredAnswers, all_pairs: bool) -> list[Fields]:
    if len(scored) < 2:
        raise LeftOutError("no-pair", "fewer than two answers have a text and a score")
    ordered = sorted(scored, key=lambda answer: -answer[0])  # of equals, the first stays first
    pairs = [
        {"chosen": better, "rejected": worse}
        for (high, better), (low, worse) in (
            combinations(ordered, 2) if all_pairs else [(ordered[0], ordered[-1])]
        )
        if high > low
    ]
    if not pairs:
        raise LeftOutError("tie", "all answers have the same score")
    return pairs


def _number(value: Any) -> float | None:
    """A score or rank; files that passed through CSV have them as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number else None


def _first(row: Fields, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


# In the order in which a row is tried: the most particular shape first.
FORMATS = {
    known.name: known
    for known in (
        Format(
            "tree", "OpenAssistant's conversation trees with ranked replies", _is_tree, _tree_rows
        ),
        Format("scored", "completions of a prompt with scores", _is_scored, _scored_rows),
        Format("hh-rlhf", "transcripts with an implicit prompt", _is_hh, _hh_rows),
        Format(
            "columns", "question or instruction, chosen_response ...", _is_columns, _columns_rows
        ),
        Format("trl", "prompt given or implied, chosen, rejected", _is_trl, _trl_rows),
    )
}
