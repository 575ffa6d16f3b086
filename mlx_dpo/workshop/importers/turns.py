"""Turns as other tools write them: their roles, keys, parts and transcripts, made the same.

What plain text can't hold (tool calls, images) leaves the row out by name: the answers would be to
another conversation.
"""

import re
from typing import Any, TypeGuard

from mlx_dpo.preferences.schema import HISTORIES, SYSTEMS
from mlx_dpo.workshop.importers.fields import Fields, LeftOutError, Row, is_broken_list, parsed

Turns = list[Fields]

# Columns without which the answers are to something else. A pair has no place for them.
BEYOND_TEXT = (
    *("tools", "functions", "tool_calls", "images", "image", "videos", "video", "audios", "audio"),
    *("objects", "files"),
)
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "instruction", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "ai", "chatgpt", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_ROLE_KEYS = ("role", "from", "speaker")
_CONTENT_KEYS = ("content", "value", "text", "parts")
_CALLS = ("tool_calls", "function_call", "tool_call_id")
_EMPTY_LISTS = ("", "[]", "{}", "null", "none")
_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}
_NEMO_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")  # HelpSteer's dialogues in one text


def is_transcript(text: Any) -> TypeGuard[str]:
    """Whether a text is a dialogue as Anthropic's HH-RLHF writes it."""
    return isinstance(text, str) and _TRANSCRIPT.match(text) is not None


def transcript_turns(text: str) -> Turns:
    """The turns of a transcript."""
    _, *parts = _TRANSCRIPT.split(text)
    return [
        turn(_TRANSCRIPT_ROLES[speaker], content.strip())
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def are_messages(value: Any) -> bool:
    """Whether a value is a message, or a list of messages or of rounds ``{human, assistant}``."""
    messages = value if isinstance(value, list) else [value]
    return bool(messages) and all(
        isinstance(message, dict)
        and (
            (
                any(key in message for key in _ROLE_KEYS)
                and any(key in message for key in _CONTENT_KEYS)
            )
            or _is_round(message)
        )
        for message in messages
    )


def _is_round(message: Fields) -> bool:
    return {_ROLES.get(str(key).lower()) for key in message} == {"user", "assistant"}


def turn(role: str, content: Any) -> Fields:
    """A message of this project."""
    return {"role": role, "content": content}


def as_turns(row: Row, name: str, value: Any, role: str) -> Turns:
    """The turns of a column: one text, a message, or a list of messages.

    Args:
        row: The row, which learns which keys of the messages were used.
        name: The column, for messages.
        value: What it holds.
        role: Role of a plain text.

    Raises:
        LeftOutError: If it holds what plain text can't.
    """
    if is_broken_list(value):
        reason = f"{name!r} is a list of messages as text, which can't be read"
        raise LeftOutError("wrong-type", reason, "write JSON lines or Parquet")
    value = parsed(value) if are_messages(parsed(value)) else value
    if role == "user" and isinstance(value, str):
        return _prompt_turns(value)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, str):
        return [turn(role, value)]
    if not isinstance(value, list) or not value:
        raise LeftOutError("wrong-type", f"{name!r} must be text or a list of messages")
    if any(not isinstance(message, dict) for message in value):
        raise LeftOutError("wrong-type", f"{name!r} holds a turn that is not a message")
    turns: Turns = []
    for message in value:
        is_round = _is_round(message)
        inner = row.inner(name, {} if is_round else message)
        turns += _round(message, name) if is_round else [_message(inner, name)]
    return turns


def _prompt_turns(text: str) -> Turns:
    if is_transcript(text):
        turns = transcript_turns(text)
        # A transcript that ends where the assistant is to answer.
        return turns[:-1] if turns[-1] == turn("assistant", "") else turns
    first, *parts = _NEMO_TURN.split(text)
    if not parts:
        return [turn("user", text)]
    turns = [turn("user", first)] if first else []
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return turns + [turn(_ROLES[who.lower()], said) for who, said in pairs]


def _message(message: Row, name: str) -> Fields:
    for key in _CALLS:
        if message.values.get(key):
            reason = f"{name!r} holds {key!r}, which is not text"
            raise LeftOutError("unsupported", reason, "pairs are of plain text")
    role, content = message.get(*_ROLE_KEYS), message.get(*_CONTENT_KEYS)
    if role is None:
        raise LeftOutError("wrong-type", f"{name!r} holds a message without a role")
    known = _ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        reason = f"{name!r} has a turn of the role {role!r:.40}"
        raise LeftOutError("unsupported", reason, "pairs have turns of system, user and assistant")
    return turn(known, _joined(content, name) if isinstance(content, list) else content)


def _joined(parts: list[Any], name: str) -> str:
    """The text of a message in parts, ``[{"type": "text", "text": ...}]``."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind == "text" and text is None and isinstance(part, dict):  # Google's have no type
            kind = next((key for key in part if key != "type"), kind)
        if kind not in ("text", "input_text", "output_text") or not isinstance(text, str):
            reason = f"{name!r} holds a part of the type {kind!r:.40}, which is not text"
            raise LeftOutError("unsupported", reason, "pairs are of plain text")
        texts.append(text)
    return "".join(texts)


def with_context(row: Row, prompt: Turns) -> Turns:
    """A prompt with the row's system text and earlier turns before it.

    Raises:
        LeftOutError: If the row holds what its answers depend on and a pair can't.
    """
    for name in BEYOND_TEXT:
        value = row.values.get(name)
        row.use(name)
        if value and not (isinstance(value, str) and value.strip().lower() in _EMPTY_LISTS):
            reason = f"has {name!r}, which a pair has no place for"
            hint = "if the answers don't depend on it, remove the column"
            raise LeftOutError("unsupported", reason, hint)
    history = _history(row)
    own = [each for each in prompt if each.get("role") == "system"]
    rest = [each for each in prompt if each.get("role") != "system"]
    system = _system(row)
    if system is None:
        return own + history + rest if own and prompt[0] in own else history + prompt
    if own and own[0].get("content") != system["content"]:
        reason = "the system column and the conversation's own system turn differ"
        raise LeftOutError("wrong-type", reason, "keep one")
    return [system, *history, *rest]


def _system(row: Row) -> Fields | None:
    """The system turn of a row's own column."""
    name = row.first(*SYSTEMS)
    value = parsed(row.values[name]) if name is not None else None
    if isinstance(value, dict):
        value = _message(row.inner(str(name), {"role": "system"} | value), str(name))["content"]
    if isinstance(value, str) or value in (None, []):
        return turn("system", value) if value and value.strip() else None
    raise LeftOutError("wrong-type", f"{name!r} must be text")


def _history(row: Row) -> Turns:
    """Earlier rounds: ``[[question, answer], ...]``, ``[{human, assistant}, ...]`` or messages."""
    name = row.first(*(each for each in HISTORIES if each not in row.asked))
    value = parsed(row.values[name]) if name is not None else None
    if name is None or value in ("", [], {}):
        return []
    if are_messages(value):
        return as_turns(row, name, value, "user")
    turns: Turns = []
    for entry in value if isinstance(value, list) else [value]:
        turns += _round(entry, name)
    return turns


def _round(entry: Any, name: str) -> Turns:
    """A question and its answer, as ``[question, answer]`` or ``{human, assistant}``."""
    if isinstance(entry, list) and len(entry) == 2:
        return [turn("user", entry[0]), turn("assistant", entry[1])]
    if isinstance(entry, dict):
        said = {_ROLES.get(str(key).lower()): value for key, value in entry.items()}
        if said.keys() == {"user", "assistant"}:
            return [turn("user", said["user"]), turn("assistant", said["assistant"])]
    reason = f"{name!r} is not a list of rounds, each a question and its answer"
    raise LeftOutError("wrong-type", reason, "write earlier rounds as messages")
