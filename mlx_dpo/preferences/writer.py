"""Preferences as the lines that the reader reads."""

import json
from collections.abc import Sequence
from typing import Any

from mlx_dpo.records import Message, Preference


def preference_line(preference: Preference, *, keep_id: bool = True) -> str:
    """A pair as a line of JSON, with its line break.

    Args:
        preference: The pair.
        keep_id: Whether its id is written. Without one, a row's id is its place in the file.
    """
    row: dict[str, Any] = {"id": preference.id} if keep_id else {}
    if preference.kind:
        row["kind"] = preference.kind
    row["prompt"] = plain(preference.prompt, "user")
    row["chosen"] = plain(preference.chosen, "assistant")
    row["rejected"] = plain(preference.rejected, "assistant")
    return json_line(row)


def plain(turns: Sequence[Message], role: str) -> str | list[dict[str, str]]:
    """Turns as they stand in a file: a single one of the usual role is plain text."""
    if len(turns) == 1 and turns[0].role == role:
        return turns[0].content
    return [turn._asdict() for turn in turns]


def json_line(row: dict[str, Any]) -> str:
    """An object as one line; keys keep their order, so equal rows have equal bytes.

    Characters that some tools take for line breaks are escaped.
    """
    text = json.dumps(row, ensure_ascii=False)
    for character in "\x85\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text + "\n"
