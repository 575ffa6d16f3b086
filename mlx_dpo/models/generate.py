"""Tokens from a model."""

from collections.abc import Collection, Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.hub import num_positions


def generate_ids(
    model: nn.Module,
    prompt_ids: Sequence[int],
    *,
    stop_ids: Collection[int],
    max_tokens: int,
    temperature: float = 0.0,
) -> list[int]:
    """Continue a prompt until a stop token or `max_tokens`.

    Args:
        model: Called as ``model(ids, cache=...)``.
        prompt_ids: At least one id.
        stop_ids: Ids that end the answer.
        max_tokens: Longest answer; less where the model's positions end before.
        temperature: 0 takes the likeliest token each time; otherwise MLX's random state decides.

    Returns:
        The new ids, with the stop token where one came.
    """
    from mlx_lm.generate import generate_step
    from mlx_lm.sample_utils import make_sampler

    positions = num_positions(model)
    if positions is not None:  # past its last position a model reads whatever lies in memory there
        max_tokens = min(max_tokens, max(0, positions - len(prompt_ids)))
    tokens = generate_step(
        mx.array(list(prompt_ids)),
        model,
        max_tokens=max_tokens,
        sampler=make_sampler(temp=temperature),
    )
    ids = []
    for token, _ in tokens:
        ids.append(int(token))
        if ids[-1] in stop_ids:
            break
    return ids
