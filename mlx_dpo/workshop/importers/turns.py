"""Dialogues taken apart: transcripts into turns, two dialogues into a prompt and two answers."""

import re
from typing import Any, TypeGuard

Turns = list[dict[str, Any]]

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class LeftOutError(Exception):
    """A row that gives no pair, for a reason with a code of `preferences.problems`."""

    def __init__(self, code: str, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.hint = hint


def is_transcript(text: Any) -> TypeGuard[str]:
    """Whether a text is a dialogue that opens with an empty line and ``Human:``."""
    return isinstance(text, str) and _SPEAKER.match(text) is not None


def transcript_turns(text: str) -> Turns:
    """The turns of a transcript, without the white space around each."""
    _, *parts = _SPEAKER.split(text)
    return [
        {"role": _ROLES[who], "content": what.strip()}
        for who, what in zip(parts[::2], parts[1::2], strict=True)
    ]


def prompt_and_answers(chosen: Turns, rejected: Turns) -> dict[str, Turns]:
    """Two dialogues that differ in the assistant's last turn alone, as prompt and two answers.

    Raises:
        LeftOutError: If they differ elsewhere: they answer different prompts.
    """
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
