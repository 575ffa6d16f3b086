"""What an answer depends on beside its prompt: columns of system texts, earlier turns, images."""

from typing import Any

from mlx_dpo.preferences.json_text import Finding
from mlx_dpo.records import Message

# Columns that other tools write beside a prompt, and that belong to it.
SYSTEMS = ("system", "system_prompt", "system_message", "systemInstruction")
HISTORIES = ("history", "conversation_history", "chat_history")
# Columns without which the answers are to something else. A pair has no place for them.
BEYOND_TEXT = (
    *("tools", "functions", "tool_calls", "images", "image", "videos", "video", "audios", "audio"),
    *("objects", "files"),
)
_EMPTY_LISTS = ("", "[]", "{}", "null", "none")
_OWN = ("assistant", "model")


def outside_prompt(row: dict[str, Any]) -> list[Finding]:
    """A finding for each column that holds a part of the prompt, which nobody reads from there."""
    hint = "mlx_dpo data import reads it; or write the prompt as messages, with all its turns"
    found = [
        Finding("wrong-type", name, f"{name!r} belongs to the prompt and would not be read", hint)
        for name in (*SYSTEMS, *HISTORIES)
        if row.get(name) not in (None, "", [], {})
    ]
    return found + beyond_text(row)


def beyond_text(row: dict[str, Any]) -> list[Finding]:
    """A finding for each column that a pair of plain text has no place for."""
    hint = "if the answers don't depend on it, remove the column"
    return [
        Finding("unsupported", name, f"has {name!r}, which a pair has no place for", hint)
        for name in BEYOND_TEXT
        if (value := row.get(name))
        and not (isinstance(value, str) and value.strip().lower() in _EMPTY_LISTS)
    ]


def second_turn(
    prompt: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> Finding | None:
    """A finding where an answer follows the assistant's own turn instead of going on with it."""
    if not prompt or prompt[-1].role not in _OWN:
        return None
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer[0].role in _OWN:
            reason = f"the prompt ends with the assistant's turn, and {name!r} begins a second one"
            return Finding("unsupported", name, f"{reason}: move the turn into both answers")
    return None
