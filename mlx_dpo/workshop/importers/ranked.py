"""Answers with scores or ranks, made into pairs: best against worst, or every two that differ."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from mlx_dpo.workshop.importers.turns import LeftOutError, Turns

Row = dict[str, Any]
Scored = list[tuple[float, Any]]  # higher is better

RANKED_FORMATS = {
    "tree": "OpenAssistant's conversation trees with ranked replies",
    "scored": "completions of a prompt with scores",
}
_LISTS = ("completions", "responses")
_TEXTS = ("text", "completion", "response", "content")
_SCORES = ("score", "overall_score", "rating")
_ROLES = {"prompter": "user", "assistant": "assistant"}


def is_scored(row: Row) -> bool:
    """Whether a row has a list of completions that are objects."""
    found = _completions(row)
    return bool(found) and all(isinstance(one, dict) for one in found or ())


def scored_rows(row: Row, all_pairs: bool) -> list[Row]:
    """Pairs of a row ``{"prompt": ..., "completions": [{"text": ..., "score": ...}, ...]}``."""
    prompt = next((row[key] for key in ("prompt", "instruction") if row.get(key)), None)
    if prompt is None:
        raise LeftOutError("missing-key", "key 'prompt' is missing")
    scored = []
    for one in _completions(row) or ():
        text = next((one[key] for key in _TEXTS if isinstance(one, dict) and key in one), None)
        score = _score(one)
        if text is not None and score is not None:
            scored.append((score, text))
    shared = {"prompt": prompt} | ({"kind": row["kind"]} if row.get("kind") else {})
    return [shared | pair for pair in _pairs(scored, all_pairs)]


def is_tree(row: Row) -> bool:
    """Whether a row is a conversation tree."""
    return isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def tree_rows(row: Row, all_pairs: bool) -> list[Row]:
    """Pairs of a tree: at each prompter's message, the assistant's replies by rank, 0 the best.

    Deleted and unranked replies are not used.
    """
    if not is_tree(row):
        raise LeftOutError("wrong-type", "'prompt' must be a message with 'replies'")
    rows, why = [], LeftOutError("no-pair", "no message has two ranked replies")
    for turns, replies in _branchings(row["prompt"]):
        ranked = [
            (-rank, reply["text"])
            for reply in replies
            if (rank := _number(reply.get("rank"))) is not None and not reply.get("deleted")
        ]
        if len(ranked) > 1:
            try:
                rows += [{"prompt": turns} | pair for pair in _pairs(ranked, all_pairs)]
            except LeftOutError as error:
                why = error
    if not rows:
        raise why
    return rows


def _branchings(root: Row) -> Iterator[tuple[Turns, list[Row]]]:
    """Each conversation that ends with a prompter's message, and the replies to it."""
    waiting: list[tuple[Turns, Any]] = [([], root)]
    while waiting:
        before, message = waiting.pop()
        if not isinstance(message, dict) or not isinstance(message.get("text"), str):
            continue
        role = _ROLES.get(message.get("role", ""))
        replies = message.get("replies")
        if role is None or not isinstance(replies, list):
            continue
        turns = [*before, {"role": role, "content": message["text"]}]
        answers = [reply for reply in replies if _is_answer(reply)]
        if role == "user":
            yield turns, answers
        waiting += [(turns, reply) for reply in reversed(replies)]


def _is_answer(reply: Any) -> bool:
    return (
        isinstance(reply, dict)
        and reply.get("role") == "assistant"
        and isinstance(reply.get("text"), str)
    )


def _pairs(scored: Scored, all_pairs: bool) -> list[Row]:
    if len(scored) < 2:
        raise LeftOutError("no-pair", "fewer than two answers have a text and a score")
    ordered = sorted(scored, key=lambda one: -one[0])  # of equals, the first stays first
    ends = (ordered[0], ordered[-1])
    couples = combinations(ordered, 2) if all_pairs else iter([ends])
    pairs = [
        {"chosen": better, "rejected": worse}
        for (high, better), (low, worse) in couples
        if high > low
    ]
    if not pairs:
        raise LeftOutError("tie", "all answers have the same score")
    return pairs


def _completions(row: Row) -> list[Any] | None:
    found = next((row[key] for key in _LISTS if isinstance(row.get(key), list)), None)
    return found


def _score(one: Any) -> float | None:
    if not isinstance(one, dict):
        return None
    return next((_number(one[key]) for key in _SCORES if key in one), None)


def _number(value: Any) -> float | None:
    """A score; files that passed through CSV have them as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number == number else None
