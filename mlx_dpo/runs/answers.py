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
    """

    text: str
    closed: bool


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
    if seed is not None:
        mx.random.seed(seed)
    ids = generate_ids(
        model,
        chat.prompt_ids(prompt),
        stop_ids=chat.stop_ids,
        max_tokens=max_tokens,
        temperature=temperature,
    )
    closed = bool(ids) and ids[-1] in chat.stop_ids
    return Answer(chat.tokenizer.decode(ids[:-1] if closed else ids).strip(), closed)
