"""Answers of a model that is looked at, with their ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from mlx_dpo.insight.scoring import Judged
from mlx_dpo.models.generate import generate_ids


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer.

    Attributes:
        ids: With the closing token where the model came to it.
        text: Without.
        closed: Whether it came to it before the limit.
    """

    ids: list[int]
    text: str
    closed: bool


def reply(
    judged: Judged,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Reply:
    """Answer a prompt.

    Args:
        judged: The model.
        prompt_ids: At least one id.
        max_tokens: Longest answer.
        temperature: 0 takes the likeliest token each time.
        seed: Set before sampling.
    """
    mx.random.seed(seed)
    chat = judged.chat
    ids = generate_ids(
        judged.model,
        prompt_ids,
        stop_ids=chat.stop_ids,
        max_tokens=max_tokens,
        temperature=temperature,
    )
    closed = bool(ids) and ids[-1] in chat.stop_ids
    return Reply(ids, chat.tokenizer.decode(ids[:-1] if closed else ids).strip(), closed)
