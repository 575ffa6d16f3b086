"""Named data without behaviour, shared by every wing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

VERSION = "0.1.0"  # of this project


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Preference:
    """One row of a preference file: two ways to go on from the same prompt.

    Attributes:
        prompt: Turns up to the answer; a plain string in the file becomes one user turn.
        chosen: The preferred continuation; a plain string becomes one assistant turn.
        rejected: The other continuation.
        kind: What the pair teaches ("tone", "format", ...); "" when the file does not say.
        id: The row's own id, or its position in the file as text.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    kind: str
    id: str

    @property
    def question(self) -> str:
        """Text of the last turn of the prompt, to show a person."""
        return self.prompt[-1].content if self.prompt else ""


class PreferenceExample(NamedTuple):
    """One pair as token ids. A response ends with the closing token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """A preference file as token ids, with an account of what happened to each row.

    ``read == len(examples) + sum(dropped.values())``, always.

    Attributes:
        examples: The pairs kept, cut to the length limit.
        preferences: The rows they came from, in the same order.
        read: Rows given.
        dropped: Rows left out, counted by reason.
        num_cut: Pairs kept with the end of a response cut off.
        num_merged: Pairs kept whose prompt and response share a token at the boundary.
        num_closed: Responses kept that end with the closing token (two a pair).
    """

    examples: list[PreferenceExample]
    preferences: list[Preference]
    read: int
    dropped: dict[str, int]
    num_cut: int
    num_merged: int
    num_closed: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs as token ids, wherever they lie, with what a report says of each.

    Attributes:
        examples: The pairs, cut to the length limit.
        ids: Id of each.
        kinds: Kind of each.
    """

    examples: Sequence[PreferenceExample]
    ids: list[str]
    kinds: list[str]
