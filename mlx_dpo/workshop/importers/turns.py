"""Turns as other tools write them: their roles, keys, parts and transcripts, made the same.

What plain text can't hold (tool calls, images) leaves the row out by name: the answers would be to
another conversation.
"""

import re
from typing import Any, TypeGuard

from mlx_dpo.preferences.context import BEYOND_TEXT, HISTORIES, SYSTEMS, beyond_text
from mlx_dpo.workshop.importers.fields import Fields, LeftOutError, Row, is_broken_list, parsed

Turns = list[Fields]

_ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "instruction", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "ai", "chatgpt", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_ROLE_KEYS = ("role", "from", "speaker")
_CONTENT_KEYS = ("content", "value", "text", "parts")
_CALLS = ("tool_calls", "function_call", "tool_call_id")
# HH-RLHF's transcripts begin with two line breaks, which copies of them have lost.
_HH_TURN = re.compile(r"(?:\A\s*(?=Human:)|\n\n)(Human|Assistant):")
# NeMo's, as in HelpSteer and NeMo-Aligner's files; a turn ends with the mark of the next one.
_NEMO_TURN = re.compile(r"\n?<extra_id_[01]>(System|User|Assistant)[ \t\r]*(?:\n|\Z)")
_NEMO_END = re.compile(r"(?:\r?\n)?<extra_id_1>\s*\Z")
_NEMO_MARK = "<extra_id_"


def is_transcript(text: Any) -> TypeGuard[str]:
    """Whether a text is a dialogue as HH-RLHF or NeMo writes it, from its first turn on."""
    if not isinstance(text, str):
        return False
    text = _with_line_feeds(text)
    if _NEMO_TURN.match(text):
        return True
    is_marked = text.startswith("\n\n") or "\n\nAssistant:" in text
    return is_marked and _HH_TURN.match(text) is not None


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def transcript_turns(text: str) -> Turns:
    """The turns of a transcript; an empty system turn is none.

    Raises:
        LeftOutError: If it has marks of NeMo's that begin no turn.
    """
    text = _with_line_feeds(text)
    is_hh = _NEMO_TURN.search(text) is None
    first, *parts = _HH_TURN.split(text) if is_hh else _NEMO_TURN.split(_NEMO_END.sub("", text))
    turns = [turn("user", first)] if first else []  # HelpSteer's first question has no mark
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = _ROLES[speaker.lower()]
        if content.strip() or role != "system":
            turns.append(turn(role, content.strip() if is_hh else content))
    if not is_hh and any(_NEMO_MARK in each["content"] for each in turns):
        reason = f"holds a mark {_NEMO_MARK}...> that begins no turn"
        raise LeftOutError("wrong-type", reason, "write the turns as messages")
    return turns


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
    if isinstance(value, str):
        return _prompt_turns(row, name, value) if role == "user" else [_answer(name, value)]
    if isinstance(value, dict):
        value = [value]
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


def _prompt_turns(row: Row, name: str, text: str) -> Turns:
    if not is_transcript(text) and not _NEMO_TURN.search(_with_line_feeds(text)):
        return [_one_text(row, text)]
    turns = transcript_turns(text)
    # A transcript that ends where the assistant is to answer.
    last = turns.pop() if turns else turn("assistant", "")
    is_open = last["role"] == "assistant" and not last["content"].strip()
    if is_open and turns:
        return turns
    if is_open:
        raise LeftOutError("missing-key", f"{name!r} has no turn before the assistant's")
    # Without the line breaks before it, a text with "Human:" may only quote a transcript.
    is_sure = text.startswith(("\n", "\r")) or not text.lstrip().startswith("Human:")
    return [*turns, last] if is_sure else [_one_text(row, text)]


def _one_text(row: Row, text: str) -> Fields:
    if text.lstrip().startswith("Human:"):
        row.notes.append(
            "the prompt begins with 'Human:' and is read as one text; "
            "a transcript has empty lines between turns and ends with 'Assistant:'"
        )
    return turn("user", text)


def _answer(name: str, text: str) -> Fields:
    """An answer without the mark that ends a turn of NeMo's."""
    if _NEMO_TURN.search(text):
        reason = f"{name!r} holds more than the answer: a mark {_NEMO_MARK}...> of another turn"
        raise LeftOutError("wrong-type", reason, "write the turns as messages")
    answer = _NEMO_END.sub("", text)
    return turn("assistant", text if _NEMO_MARK in answer else answer)


def _message(message: Row, name: str) -> Fields:
    for key in _CALLS:
        if message.values.get(key):
            reason = f"{name!r} holds {key!r}, which is not text"
            raise LeftOutError("unsupported", reason, "pairs are of plain text")
    if beyond := beyond_text(message.values):
        reason = f"{name!r} holds a message that {beyond[0].reason}"
        raise LeftOutError(beyond[0].code, reason, beyond[0].hint)
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
    row.use(*BEYOND_TEXT)
    if beyond := beyond_text(row.values):
        raise LeftOutError(beyond[0].code, beyond[0].reason, beyond[0].hint)
    history, column = _history(row), _system(row)
    parts = [[column] if column else [], history, prompt]
    # Only a system turn that leads is the row's own; one further inside stays in its place.
    own = [part[0] for part in parts if part and part[0].get("role") == "system"]
    if any(each.get("content") != own[0].get("content") for each in own):
        other = "column" if column else "turn of the earlier rounds"
        reason = f"the system {other} and the conversation's own system turn differ"
        raise LeftOutError("wrong-type", reason, "keep one")
    rest = [part[1:] if part and part[0] in own else part for part in parts]
    return own[:1] + [each for part in rest for each in part]


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
