"""Completions from a model: one prompt or many, one after the other or in batches.

A completion follows from its request's seed and not from the requests beside it, except for the
rounding that another batch shape brings. MLX's own random state is left alone.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_dpo.models.folder import num_positions
from mlx_dpo.models.limits import pin_a_share
from mlx_dpo.preferences.chat import ChatFormat
from mlx_dpo.records import Message

Sampler = Callable[[mx.array], mx.array]

BATCH = 16  # prompts: on a CPU several times as fast as one by one

# Two ways to the same log-probs differ by rounding, most in half precision on a GPU.
_LARGEST_DIFFERENCE = 0.05  # nats
_PROBED = 3  # tokens


class Request(NamedTuple):
    """One completion to generate.

    Attributes:
        prompt_ids: At least one id.
        seed: Decides what is sampled, 64 bits.
        temperature: 0 takes the likeliest token each time.
    """

    prompt_ids: Sequence[int]
    seed: int = 0
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model writes after a prompt.

    Attributes:
        text: Without the closing token, stripped.
        closed: Whether the model ended it with a closing token, before the limit.
        ids: With the closing token where there is one.
    """

    text: str
    closed: bool
    ids: Sequence[int] = ()


class _Generated(NamedTuple):
    """New ids, and the log-probs (V,) from which the first `_PROBED` of them were drawn."""

    ids: list[int]
    logprobs: list[mx.array]


def answer(
    model: nn.Module,
    chat: ChatFormat,
    prompt: Sequence[Message],
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    so_far: Callable[[str], None] | None = None,
) -> Completion:
    """The model's turn after the turns of `prompt`; arguments as those of `complete`.

    `so_far` is called after each token with the text until then, whose last character may yet be
    incomplete (U+FFFD).
    """
    request = Request(chat.prompt_ids(prompt), seed, temperature)

    def after_token(ids: list[int]) -> None:
        if so_far is not None:
            so_far(chat.tokenizer.decode(ids).strip())

    generated = generate_each(
        model, [request], stop_ids=chat.stop_ids, max_tokens=max_tokens, after_token=after_token
    )
    return _completion(chat, generated[0])


def answer_all(
    model: nn.Module,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    after_prompts: Callable[[int], None] = lambda count: None,
) -> list[Completion]:
    """Completions of many prompts, `BATCH` at a time where the model's caches can be batched.

    Args:
        model: Called as ``model(ids, cache=...)``.
        chat: The model's conversation format.
        prompts: Ids of each, at least one.
        max_tokens: Longest completion in tokens.
        temperature: 0 takes the likeliest token each time.
        seed: Prompt i is sampled with seed + i.
        after_prompts: Called with how many more prompts are completed.
    """
    requests = [Request(ids, seed + i, temperature) for i, ids in enumerate(prompts)]
    batched = len(prompts) > 1 and batches_exactly(model, prompts)
    size = BATCH if batched else 1
    completions: list[Completion] = []
    for start in range(0, len(requests), size):
        batch = requests[start : start + size]
        completions += complete(model, chat, batch, max_tokens=max_tokens, batched=batched)
        after_prompts(len(batch))
    return completions


def complete(
    model: nn.Module,
    chat: ChatFormat,
    requests: Sequence[Request],
    *,
    max_tokens: int,
    batched: bool = False,
    after_token: Callable[[], None] = lambda: None,
) -> list[Completion]:
    """Complete prompts up to the closing token or the limit.

    Args:
        model: Called as ``model(ids, cache=...)``.
        chat: The model's conversation format.
        requests: What to generate.
        max_tokens: Longest completion in tokens; less where the model's positions end before.
        batched: Whether to generate all in one batch (see `batches_exactly`).
        after_token: Called after each token, of the batch or of one prompt; it may raise.
    """
    limits: dict[str, Any] = {"stop_ids": chat.stop_ids, "max_tokens": max_tokens}
    if batched:
        generated = generate_together(model, requests, **limits, after_token=after_token)
    else:
        generated = generate_each(model, requests, **limits, after_token=lambda _: after_token())
    return [_completion(chat, ids) for ids in generated]


def _completion(chat: ChatFormat, ids: list[int]) -> Completion:
    closed = bool(ids) and ids[-1] in chat.stop_ids
    text = chat.tokenizer.decode(ids[:-1] if closed else ids).strip()
    return Completion(text, closed, ids)


def generate_each(
    model: nn.Module,
    requests: Sequence[Request],
    *,
    stop_ids: Collection[int],
    max_tokens: int,
    after_token: Callable[[list[int]], None] = lambda ids: None,
) -> list[list[int]]:
    """New ids of each request, with the stop id where one came; one request after the other.

    Args:
        model: Called as ``model(ids, cache=...)``.
        requests: What to generate.
        stop_ids: Ids that end a completion.
        max_tokens: Longest completion; less where the model's positions end before.
        after_token: Called with the new ids until then, after each that does not end it.
    """
    from mlx_lm.generate import generate_step

    completions = []
    for request, limit in zip(requests, _limits(model, requests, max_tokens), strict=True):
        ids: list[int] = []
        prompt, sampler = mx.array(list(request.prompt_ids)), _sampler(request)
        # Closed, the generator computes no further token while limits of the memory change.
        steps = generate_step(prompt, model, max_tokens=limit, sampler=sampler)
        with closing(steps):
            for token, _ in steps:
                ids.append(int(token))
                if ids[-1] in stop_ids:
                    break
                after_token(ids)
        completions.append(ids)
    return completions


def generate_together(
    model: nn.Module,
    requests: Sequence[Request],
    *,
    stop_ids: Collection[int],
    max_tokens: int,
    after_token: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """`generate_each` in one batch, for models whose caches can be batched."""
    limits = _limits(model, requests, max_tokens)
    # A prompt that fills the model's positions leaves no room for a token.
    limited = [(request, n) for request, n in zip(requests, limits, strict=True) if n]
    generated = iter(_batch(model, limited, stop_ids, after_token) if limited else ())
    return [next(generated).ids if limit else [] for limit in limits]


def batches_exactly(model: nn.Module, prompts: Sequence[Sequence[int]]) -> bool:
    """Whether prompts of different lengths get the same log-probs in a batch as alone.

    Compares the log-probs of the first tokens after two prompts, the shortest and the longest.
    """
    ordered = sorted(prompts, key=len)
    requests = [Request(ids) for ids in (ordered[0], ordered[-1])]
    limited = list(zip(requests, _limits(model, requests, _PROBED), strict=True))
    if any(limit == 0 for _, limit in limited):
        return True  # nothing to compare, and nothing that could differ
    try:
        together = _batch(model, limited, ())
        alone = [_batch(model, [pair], ())[0] for pair in limited]
    except (ValueError, TypeError, AttributeError, NotImplementedError):
        return False  # a cache that can't be batched
    return all(_agree(a, b) for a, b in zip(together, alone, strict=True))


def _agree(a: _Generated, b: _Generated) -> bool:
    for id_a, id_b, logprobs_a, logprobs_b in zip(
        a.ids, b.ids, a.logprobs, b.logprobs, strict=True
    ):
        # `not <=` and not `>`: NaN does not agree.
        if not float(mx.abs(logprobs_a - logprobs_b).max()) <= _LARGEST_DIFFERENCE:
            return False
        if id_a != id_b:
            return True  # as good as a tie, and from here on the two read different tokens
    return True


def _batch(
    model: nn.Module,
    limited: Sequence[tuple[Request, int]],
    stop_ids: Collection[int],
    after_token: Callable[[], None] = lambda: None,
) -> list[_Generated]:
    """Generate for requests, each with its limit in tokens, in one batch."""
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(
        model,
        stop_tokens=[[token] for token in sorted(stop_ids)],
        completion_batch_size=len(limited),
        prefill_batch_size=len(limited),
    )
    # The generator has pinned all that the device recommends; closed, it restores the old limit.
    pin_a_share()
    try:
        uids = generator.insert(
            [list(request.prompt_ids) for request, _ in limited],
            [limit for _, limit in limited],
            samplers=[_sampler(request) for request, _ in limited],
        )
        generated = {uid: _Generated([], []) for uid in uids}
        while responses := generator.next_generated():
            for response in responses:
                generated[response.uid].ids.append(response.token)
                if len(generated[response.uid].logprobs) < _PROBED:
                    generated[response.uid].logprobs.append(response.logprobs)
            after_token()
        return [generated[uid] for uid in uids]
    finally:
        generator.close()


def _limits(model: nn.Module, requests: Sequence[Request], max_tokens: int) -> list[int]:
    """Most new tokens of each: past its last position a model reads memory it does not own."""
    positions = num_positions(model)
    if positions is None:
        return [max_tokens] * len(requests)
    return [min(max_tokens, max(0, positions - len(r.prompt_ids))) for r in requests]


def _sampler(request: Request) -> Sampler:
    """Draws the next token from log-probs (1, V) with keys that follow from the seed alone."""
    if request.temperature == 0:
        return lambda logprobs: mx.argmax(logprobs, axis=-1)
    state = mx.random.key(request.seed)

    def sample(logprobs: mx.array) -> mx.array:
        nonlocal state
        state, key = mx.random.split(state)
        return mx.random.categorical(logprobs * (1 / request.temperature), key=key)

    return sample
