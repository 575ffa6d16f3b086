"""What a model says to a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.generate import generate_ids
from mlx_dpo.preferences.tokens import ChatFormat
from mlx_dpo.records import Message


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer.

    Attributes:
        text: Without the closing token.
        closed: Whether the model ended it itself, before the limit.
        ids: With the closing token where the model came to it.
    """

    text: str
    closed: bool
    ids: Sequence[int] = ()


def answer(
    model: nn.Module,
    chat: ChatFormat,
    prompt: Sequence[Message],
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Answer:
    """Answer a prompt, stopping at the closing token.

    Args:
        model: Called as ``model(ids, cache=...)``.
        chat: The model's conversation format.
        prompt: The turns to answer.
        max_tokens: Longest answer in tokens.
        temperature: 0 takes the likeliest token each time.
        seed: Set before sampling; None leaves MLX's random state as it is.
    """
    return answer_ids(
        model,
        chat,
        chat.prompt_ids(prompt),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )


def answer_ids(
    model: nn.Module,
    chat: ChatFormat,
    prompt_ids: Sequence[int],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Answer:
    """The same for a prompt that is token ids, at least one."""
    if seed is not None:
        mx.random.seed(seed)
    ids = generate_ids(
        model,
        prompt_ids,
        stop_ids=chat.stop_ids,
        max_tokens=max_tokens,
        temperature=temperature,
    )
    closed = bool(ids) and ids[-1] in chat.stop_ids
    return Answer(chat.tokenizer.decode(ids[:-1] if closed else ids).strip(), closed, ids)
