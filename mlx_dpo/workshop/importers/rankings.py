"""Shapes whose rows hold several answers to one prompt with scores or ranks."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from mlx_dpo.workshop.importers.chosen import DIALOGUES, PROMPTS, pair, prompt_turns
from mlx_dpo.workshop.importers.fields import (
    VERDICTS,
    Fields,
    Format,
    LeftOutError,
    Row,
    first_of,
    has,
    number,
    parsed,
)
from mlx_dpo.workshop.importers.turns import Turns, as_turns, turn

ScoredAnswers = list[tuple[float, Turns]]  # higher is better

_LISTS = ("completions", "responses", "answers", "generations")
_TEXTS = ("text", "completion", "response", "content", "answer")
_POINTS = ("score", "overall_score", "rating", "pm_score", "reward")
_TEXT_LISTS = (*_LISTS, "all_generated_responses", "candidates_completions", "candidates")
_POINT_LISTS = ("scores", "ratings", "rating", "rewards", "all_rm_scores", "pair_rm_scores")
_RANK_LISTS = ("ranks", "rank")
_RANKINGS = ("ranking", "rankings")  # ranks of the answers, or the answers in their order
_CHOICES = (*VERDICTS, "rejected", "best", "best_index", "chosen_index", "selected")
_TREE_ROLES = {"prompter": "user", "assistant": "assistant"}


def ranked_pairs(scored: ScoredAnswers, all_pairs: bool) -> list[tuple[Turns, Turns]]:
    """Better and worse answers of a ranking.

    Args:
        scored: The answers.
        all_pairs: Whether every two that differ are a pair, or the best and the worst alone.

    Raises:
        LeftOutError: If there are no two, or none is better.
    """
    if len(scored) < 2:
        raise LeftOutError("no-pair", "fewer than two answers have a text and a score")
    ordered = sorted(scored, key=lambda answer: -answer[0])  # of equals, the first stays first
    pairs = [
        (better, worse)
        for (high, better), (low, worse) in (
            combinations(ordered, 2) if all_pairs else [(ordered[0], ordered[-1])]
        )
        if high > low
    ]
    if not pairs:
        raise LeftOutError("tie", "all answers have the same score")
    return pairs


# Objects with a text and a score or rank: UltraFeedback, Nectar, NeMo.


def _entries(row: Fields) -> tuple[str, list[Any]] | None:
    if has(row, "chosen", "rejected"):
        return None  # somebody has drawn the conclusion
    for name in _LISTS:
        value = parsed(row.get(name))
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            return name, value
    return None


def _is_scored(row: Fields) -> bool:
    found = _entries(row)
    return (
        found is not None
        and not first_of(found[1][0], ("rank",))
        and any(name in entry for entry in found[1] for name in _POINTS)
    )


def _is_ranked(row: Fields) -> bool:
    found = _entries(row)
    return found is not None and first_of(found[1][0], ("rank",)) is not None


def is_undecided(row: Fields) -> bool:
    """Whether a row has a prompt and answers that nothing tells the better of: candidates."""
    answers = parsed(row.get("answers"))
    return (
        isinstance(answers, list)
        and first_of(row, PROMPTS) is not None
        and first_of(row, (*_CHOICES, *_POINT_LISTS, *_RANK_LISTS, *_RANKINGS)) is None
        and numbers_beside(row) is None
        and not (_is_scored(row) or _is_ranked(row))
    )


def numbers_beside(row: Fields) -> str | None:
    """The column with a number for each of a row's answers, whatever they mean."""
    count = next((len(parsed(row[n])) for n in _TEXT_LISTS if _is_list(row.get(n))), None)
    for name in sorted(row.keys() - {*_TEXT_LISTS, *PROMPTS}):
        values = parsed(row[name])
        if isinstance(values, list) and len(values) == count and all(map(_is_number, values)):
            return name
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, bool) or number(value) is not None


def _scored_pairs(row: Row, all_pairs: bool) -> list[Fields]:
    found = _entries(row.values)
    if found is None:
        raise LeftOutError("no-pair", "fewer than two answers have a text and a score")
    prompt = _asked(row)
    scored: ScoredAnswers = []
    for value in found[1]:
        entry = row.inner(found[0], value)
        score = _points(entry)
        name = entry.first(*_TEXTS)
        if name is not None and score is not None:
            scored.append((score, as_turns(entry, name, entry.values[name], "assistant")))
    return [pair(row, prompt, *answers) for answers in ranked_pairs(scored, all_pairs)]


def _asked(row: Row) -> Turns:
    prompt = prompt_turns(row)
    if not prompt or not prompt[-1]["content"]:
        raise LeftOutError("missing-key", "key 'prompt' is missing")
    return prompt


def _points(entry: Row) -> float | None:
    """The score of an answer; of a rank its negative."""
    rank = number(entry.get("rank"))
    if rank is not None:
        return -rank
    scores = (number(entry.get(name)) for name in _POINTS)
    score = next((score for score in scores if score is not None), None)
    fine = number(entry.values.get("fine-grained_score"))
    if score == 10 and fine is not None and fine <= 2:
        entry.notes.append("an answer's score is 10 and its ratings are 2 or less; it is not used")
        return None
    return score


# Two lists side by side: answers, and their scores or ranks.


def _lists(row: Fields) -> tuple[str, str] | None:
    texts = next((name for name in _TEXT_LISTS if _is_list(row.get(name), str)), None)
    points = next(
        (name for name in (*_POINT_LISTS, *_RANK_LISTS, *_RANKINGS) if _is_list(row.get(name))),
        None,
    )
    return (texts, points) if texts is not None and points is not None else None


def _is_list(value: Any, kind: type = object) -> bool:
    value = parsed(value)
    return isinstance(value, list) and len(value) > 1 and all(isinstance(v, kind) for v in value)


def _is_lists(row: Fields) -> bool:
    return _lists(row) is not None and first_of(row, (*PROMPTS, *DIALOGUES)) is not None


def _lists_pairs(row: Row, all_pairs: bool) -> list[Fields]:
    names = _lists(row.values)
    if names is None:
        raise LeftOutError("no-pair", "fewer than two answers have a text and a score")
    texts, points = (parsed(row.get(name)) for name in names)
    if len(texts) != len(points):
        raise LeftOutError("wrong-type", f"{names[0]!r} and {names[1]!r} have different lengths")
    if names[1] in _RANKINGS:
        _refuse_order(names[1], points)
    sign = -1 if names[1] in (*_RANK_LISTS, *_RANKINGS) else 1
    scored = [
        (sign * score, [turn("assistant", text)])
        for text, point in zip(texts, points, strict=True)
        if (score := number(point)) is not None
    ]
    prompt = _asked(row)
    return [pair(row, prompt, *answers) for answers in ranked_pairs(scored, all_pairs)]


def _refuse_order(name: str, points: list[Any]) -> None:
    """Refuse a ranking that may be the answers in their order, if that is another ranking."""
    ranks = [number(point) for point in points]
    low = min((rank for rank in ranks if rank is not None), default=-1)
    places = [rank - low for rank in ranks if rank is not None]
    steps = range(len(ranks))
    reason = ""
    if low not in (0, 1) or len(places) < len(ranks) or not {*places} <= {*map(float, steps)}:
        reason = f"{name!r} holds {points!s:.60}, which are no ranks of {len(points)} answers"
    elif len({*places}) == len(ranks) and any(places[int(places[at])] != at for at in steps):
        reason = f"{name!r} {points!s:.60} may be ranks, or the numbers of the answers in order"
    if reason:
        hint = f"if it has a rank for each answer: --columns ranks={name}"
        raise LeftOutError("no-pair", reason, hint)


# OpenAssistant's trees: at each prompter's message, the assistant's replies by rank, 0 the best.
# Deleted and unranked replies are not used.


def _is_tree(row: Fields) -> bool:
    return isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def _tree_pairs(row: Row, all_pairs: bool) -> list[Fields]:
    if not _is_tree(row.values):
        raise LeftOutError("wrong-type", "'prompt' must be a message with 'replies'")
    found: list[Fields] = []
    left_out = LeftOutError("no-pair", "no message has two ranked replies")
    for turns, replies in _branchings(row.get("prompt")):
        ranked: ScoredAnswers = [
            (-rank, [turn("assistant", reply["text"])])
            for reply in replies
            if (rank := number(reply.get("rank"))) is not None and not reply.get("deleted")
        ]
        if len(ranked) > 1:
            try:
                found += [pair(row, turns, *answers) for answers in ranked_pairs(ranked, all_pairs)]
            except LeftOutError as error:
                left_out = error
    if not found:
        raise left_out
    return found


def _branchings(root: Fields) -> Iterator[tuple[Turns, list[Fields]]]:
    """Each conversation that ends with a prompter's message, and the assistant's replies to it."""
    waiting: list[tuple[Turns, Any]] = [([], root)]
    while waiting:
        before, message = waiting.pop()
        role = _tree_role(message)
        if role is None or not isinstance(message.get("replies"), list):
            continue
        turns = [*before, turn(role, message["text"])]
        if role == "user":
            yield turns, [reply for reply in message["replies"] if _tree_role(reply) == "assistant"]
        waiting += [(turns, reply) for reply in reversed(message["replies"])]


def _tree_role(message: Any) -> str | None:
    """The role of a message of a tree; None if it is not a message with a text."""
    if not isinstance(message, dict) or not isinstance(message.get("text"), str):
        return None
    return _TREE_ROLES.get(str(message.get("role")))


TREE = Format(
    "tree",
    "OpenAssistant's conversation trees with ranked replies",
    "prompt: {text, role, replies: [...]}",
    _is_tree,
    _tree_pairs,
    lenient=True,
)
RANKED = Format(
    "ranked",
    "answers of a prompt with ranks, 1 the best (Nectar, NeMo)",
    "prompt (or context), answers (or completions): [{answer, rank}, ...]",
    _is_ranked,
    _scored_pairs,
)
SCORED = Format(
    "scored",
    "completions of a prompt with scores",
    "prompt, completions (or responses): [{text, score}, ...]",
    _is_scored,
    _scored_pairs,
    lenient=True,
)
LISTS = Format(
    "lists",
    "answers of a prompt and, beside them, their scores",
    "prompt, responses (or generations): [...], scores (or ratings, ranks, ranking): [...]",
    _is_lists,
    _lists_pairs,
)
