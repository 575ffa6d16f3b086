"""Open WebUI's exports: thumbs on answers, each with its whole conversation, or in it.

Open WebUI keeps regenerated answers, and those of other models, as siblings in the conversation's
tree. Its own leaderboard counts a thumb up as a win over every sibling, and a thumb down as a loss
to every one; pairs are made by the same rule, except against siblings that have the same thumb.
"""

import re
from typing import Any

from mlx_dpo.workshop.importers.chosen import pair
from mlx_dpo.workshop.importers.fields import Fields, Format, LeftOutError, Row, number
from mlx_dpo.workshop.importers.turns import Turns, turn

# How reasoning, tool calls and code are folded into an answer's text; it is not sent back.
_FOLDED = re.compile(r"<details\b[^>]*\btype=\"([^\"]*)\"[^>]*>.*?</details>\s*", re.DOTALL)
_REASONING = "reasoning"
_OF_THE_EXPORT = ("id", "user_id", "user", "created_at", "updated_at")


def _is_feedback(row: Fields) -> bool:
    parts = [row.get(name) for name in ("data", "meta", "snapshot")]
    if not all(isinstance(part, dict) for part in parts):
        return False
    return "rating" in row["data"] and "chat" in row["snapshot"]


def _is_chat(row: Fields) -> bool:
    """Whether a row is a conversation of the export of chats, which keeps its thumbs inside."""
    return "snapshot" not in row and bool(_conversation(row)[0])


def _pairs(row: Row, all_pairs: bool) -> list[Fields]:
    if not _is_feedback(row.values):
        return _chat_pairs(row, all_pairs)
    data, meta = (row.inner(name, _object(row.values, name)) for name in ("data", "meta"))
    row.use("snapshot", "type", "version", *_OF_THE_EXPORT)
    for said in (data, meta):  # who was asked and why; the pair needs the answers alone
        said.use("model_id", "sibling_model_ids", "message_index", "chat_id", "base_models")
        said.use("arena", "details")
    rating = _thumb(data.get("rating"))
    if not rating:
        raise LeftOutError("no-pair", "no thumb up or down")
    messages, system = _conversation(_object(row.values, "snapshot"))
    rated = messages.get(str(meta.get("message_id")))
    if not isinstance(rated, dict) or rated.get("role") != "assistant":
        raise LeftOutError("wrong-type", "the snapshot lacks the answer that was rated")
    return _rated_pairs(row, messages, system, rated, rating, all_pairs)


def _chat_pairs(row: Row, all_pairs: bool) -> list[Fields]:
    row.use("chat", "title", "meta", "archived", "pinned", "share_id", "folder_id", *_OF_THE_EXPORT)
    messages, system = _conversation(row.values)
    found: list[Fields] = []
    left_out = LeftOutError("no-pair", "no answer has a thumb up or down")
    for message in messages.values():
        rating = _thumb(_object(message, "annotation").get("rating"))
        if rating:
            try:
                found += _rated_pairs(row, messages, system, message, rating, all_pairs)
            except LeftOutError as error:
                left_out = error
    if not found:
        raise left_out
    return found


def _rated_pairs(
    row: Row, messages: Fields, system: Any, rated: Fields, rating: int, all_pairs: bool
) -> list[Fields]:
    """The pairs of one answer that has a thumb."""
    others = _siblings(messages, rated, rating)
    before = _path(row, messages, rated.get("parentId"))
    if not before or before[-1]["role"] != "user":
        raise LeftOutError("no-common-prompt", "the answer that was rated follows no question")
    if system:
        before = [turn("system", system), *before]
    found = []
    for other in others if all_pairs else others[:1]:
        better, worse = (rated, other) if rating > 0 else (other, rated)
        answers = ([turn("assistant", _said(row, each))] for each in (better, worse))
        found.append(pair(row, before, *answers))
    return found


def _object(values: Any, name: str) -> Fields:
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, dict) else {}


def _thumb(value: Any) -> int:
    """1 for a thumb up, -1 for one down, 0 for none."""
    found = number(value)
    return 0 if found is None or found not in (1, -1) else int(found)


def _conversation(snapshot: Fields) -> tuple[Fields, Any]:
    """The messages of a snapshot, by id, and its system text."""
    chat = _object(snapshot, "chat")
    inner = _object(chat, "chat") or chat
    messages = _object(_object(inner, "history"), "messages")
    system = _object(inner, "params").get("system") or inner.get("system")
    return messages, system if isinstance(system, str) else None


def _siblings(messages: Fields, rated: Fields, rating: int) -> list[Fields]:
    """The other answers to the same question, those with the opposite thumb first.

    Raises:
        LeftOutError: If there is none that the rating says anything about.
    """
    parent = messages.get(str(rated.get("parentId")))
    ids = parent.get("childrenIds") if isinstance(parent, dict) else None
    answers = [messages.get(str(each)) for each in (ids if isinstance(ids, list) else [])]
    others = [
        each
        for each in answers
        if isinstance(each, dict) and each is not rated and each.get("role") == "assistant"
    ]
    if not others:
        reason = "the answer that was rated is the only one to its question"
        raise LeftOutError("no-pair", reason, "regenerate it and rate both, or ask two models")
    thumbs = {id(each): _thumb(_object(each, "annotation").get("rating")) for each in others}
    told = [each for each in others if thumbs[id(each)] != rating]
    if not told:
        raise LeftOutError("tie", "all answers to its question have the same thumb")
    return sorted(told, key=lambda each: thumbs[id(each)] * rating)


def _path(row: Row, messages: Fields, message_id: Any) -> Turns:
    """The turns from the beginning of a conversation to a message."""
    turns: Turns = []
    seen: set[str] = set()
    while message_id is not None:
        message = messages.get(str(message_id))
        if not isinstance(message, dict) or str(message_id) in seen:
            raise LeftOutError("wrong-type", "the snapshot lacks an earlier message")
        seen.add(str(message_id))
        role = message.get("role")
        if role not in ("user", "assistant", "system"):
            raise LeftOutError("unsupported", f"a turn of the role {role!r:.40}")
        if message.get("files"):
            reason = "a question has files, which the pair's text lacks"
            raise LeftOutError("unsupported", reason, "pairs are of plain text")
        turns.append(turn(role, _said(row, message)))
        message_id = message.get("parentId")
    return turns[::-1]


def _said(row: Row, message: Fields) -> Any:
    """The text of a message, without folded reasoning."""
    content = message.get("content")
    if not isinstance(content, str) or message.get("role") != "assistant":
        return content
    kinds = {match[1] for match in _FOLDED.finditer(content)}
    if kinds - {_REASONING}:
        reason = f"an answer holds {min(kinds - {_REASONING})!r:.40}, which is not text"
        raise LeftOutError("unsupported", reason, "pairs are of plain text")
    if kinds:
        row.notes.append("an answer was taken without its folded reasoning")
    return _FOLDED.sub("", content)


OPEN_WEBUI = Format(
    "open-webui",
    "Open WebUI's export of feedback, or of chats",
    "data.rating, meta.message_id, snapshot.chat; or chat.history.messages",
    lambda row: _is_feedback(row) or _is_chat(row),
    _pairs,
    once=True,
)
