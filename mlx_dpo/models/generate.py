"""Tokens from a model."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.hub import num_positions
from mlx_dpo.models.limits import pin_a_share
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.records import Message


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


# --- Answers to several prompts at once, each with a source of chance
# of its own.
#
# A row's tokens depend on its seed and not on its neighbours, but for the rounding that another
# batch shape brings.


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


# --- What a model says to a prompt.


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


# --- Answers to many prompts, in batches: on a CPU several times as
# fast as one by one.


BATCH = 16


def answer_all(
    model: nn.Module,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    after_prompts: Callable[[int], None] = lambda count: None,
) -> list[Answer]:
    """What `answer_ids` says to each prompt, but for rounding, several at a time.

    Args:
        model: Called as ``model(ids, cache=...)``. Where its caches can't be batched, prompts are
            answered one by one.
        chat: The model's conversation format.
        prompts: Ids of each, at least one.
        max_tokens: Longest answer.
        temperature: 0 takes the likeliest token each time.
        seed: Prompt i is sampled with seed + i.
        after_prompts: Called with how many more are answered.
    """
    asks = [Ask(list(ids), seed + place, temperature) for place, ids in enumerate(prompts)]
    is_batchable = len(asks) > 1 and batches_exactly(model, [ask.prompt_ids for ask in asks])
    generate, size = (generate_together, BATCH) if is_batchable else (generate_each, 1)
    stop_ids = chat.stop_ids
    answers = []
    for start in range(0, len(asks), size):
        batch = asks[start : start + size]
        for ids in generate(model, batch, stop_ids=stop_ids, max_tokens=max_tokens):
            closed = bool(ids) and ids[-1] in stop_ids
            text = chat.tokenizer.decode(ids[:-1] if closed else ids).strip()
            answers.append(Answer(text, closed, ids))
        after_prompts(len(batch))
    return answers
