"""Answers to several prompts at once, each with a source of chance of its own.

A row's tokens depend on its seed and not on its neighbours, but for the rounding that another
batch shape brings.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.hub import num_positions
from mlx_dpo.models.limits import pin_a_share

Sampler = Callable[[mx.array], mx.array]

# Two ways to the same log-probs differ by rounding, by most in half precision on a GPU.
_AGREE = 0.05
_PROBED = 3  # tokens


class Ask(NamedTuple):
    """One answer that is wanted.

    Attributes:
        prompt_ids: At least one id.
        seed: Decides what is sampled, 64 bits.
        temperature: 0 takes the likeliest token each time.
    """

    prompt_ids: list[int]
    seed: int = 0
    temperature: float = 0.0


class Drawn(NamedTuple):
    """An answer, and the log-probs (V,) that its first tokens were drawn from."""

    ids: list[int]
    logprobs: list[mx.array]


def generate_each(
    model: nn.Module, asks: Sequence[Ask], *, stop_ids: Collection[int], max_tokens: int
) -> list[list[int]]:
    """The plain definition: one answer after the other.

    Args:
        model: Called as ``model(ids, cache=...)``.
        asks: What is wanted.
        stop_ids: Ids that end an answer.
        max_tokens: Longest answer; less where the model's positions end before.

    Returns:
        The new ids of each, with the stop token where one came.
    """
    from mlx_lm.generate import generate_step

    answers = []
    for ask, limit in zip(asks, _limits(model, asks, max_tokens), strict=True):
        ids: list[int] = []
        prompt = mx.array(ask.prompt_ids)
        for token, _ in generate_step(prompt, model, max_tokens=limit, sampler=_sampler(ask)):
            ids.append(int(token))
            if ids[-1] in stop_ids:
                break
        answers.append(ids)
    return answers


def generate_together(
    model: nn.Module, asks: Sequence[Ask], *, stop_ids: Collection[int], max_tokens: int
) -> list[list[int]]:
    """The same in one batch, for models whose caches can be batched (see `batches_exactly`)."""
    limits = _limits(model, asks, max_tokens)
    # A prompt that fills the model has no answer.
    room = [(ask, limit) for ask, limit in zip(asks, limits, strict=True) if limit]
    found = iter(_batch(model, room, stop_ids) if room else ())
    return [next(found)[0] if limit else [] for limit in limits]


def batches_exactly(model: nn.Module, prompts: Sequence[list[int]]) -> bool:
    """Whether a batch of prompts of different lengths gives each what it gives alone.

    Compares the log-probs of the first tokens of two prompts, the shortest and the longest.
    """
    ordered = sorted(prompts, key=len)
    asks = [Ask(ids) for ids in (ordered[0], ordered[-1])]
    limited = list(zip(asks, _limits(model, asks, _PROBED), strict=True))
    if any(limit == 0 for _, limit in limited):
        return True  # nothing to compare, and nothing that could differ
    try:
        together = _batch(model, limited, ())
        alone = [_batch(model, [one], ())[0] for one in limited]
    except (ValueError, TypeError, AttributeError, NotImplementedError):
        return False  # a cache that can't be batched
    return all(_agree(one, other) for one, other in zip(together, alone, strict=True))


def _agree(one: Drawn, other: Drawn) -> bool:
    steps = zip(one.ids, other.ids, one.logprobs, other.logprobs, strict=True)
    for token, other_token, logprobs, other_logprobs in steps:
        if not float(mx.abs(logprobs - other_logprobs).max()) <= _AGREE:  # NaN does not agree
            return False
        if token != other_token:
            return True  # as good as a tie, and from here on the two read different words
    return True


def _batch(
    model: nn.Module, limited: Sequence[tuple[Ask, int]], stop_ids: Collection[int]
) -> list[Drawn]:
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(
        model,
        stop_tokens=[[token] for token in sorted(stop_ids)],
        completion_batch_size=len(limited),
        prefill_batch_size=len(limited),
    )
    pin_a_share()  # it has pinned all that the device recommends; closed, it puts back what was
    try:
        uids = generator.insert(
            [list(ask.prompt_ids) for ask, _ in limited],
            [limit for _, limit in limited],
            samplers=[_sampler(ask) for ask, _ in limited],
        )
        drawn = {uid: Drawn([], []) for uid in uids}
        while responses := generator.next_generated():
            for response in responses:
                drawn[response.uid].ids.append(response.token)
                if len(drawn[response.uid].logprobs) < _PROBED:
                    drawn[response.uid].logprobs.append(response.logprobs)
        return [drawn[uid] for uid in uids]
    finally:
        generator.close()


def _limits(model: nn.Module, asks: Sequence[Ask], max_tokens: int) -> list[int]:
    positions = num_positions(model)
    if positions is None:
        return [max_tokens] * len(asks)
    return [min(max_tokens, max(0, positions - len(ask.prompt_ids))) for ask in asks]


def _sampler(ask: Ask) -> Sampler:
    """Draws the next token from log-probs (1, V) with keys that follow from the seed alone."""
    if ask.temperature == 0:
        return lambda logprobs: mx.argmax(logprobs, axis=-1)
    state = mx.random.key(ask.seed)

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal state
        state, key = mx.random.split(state)
        return mx.random.categorical(logprobs * (1 / ask.temperature), key=key)

    return sample
