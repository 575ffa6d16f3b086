"""Ways to compute the log-probs of a batch of pairs: the definition, and a faster one.

A path is called as ``path(model, examples)`` and returns float32 (2, B), chosen in row 0, rejected
in row 1, differentiable; ``gradient=True`` announces that a gradient will be asked for. Both agree
to float rounding, which `training.self_check` verifies on the user's model and pairs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_dpo.models.device import on_gpu
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.attention import heads_together
from mlx_dpo.training.checkpointing import checkpointed
from mlx_dpo.training.embedding import gathered_once
from mlx_dpo.training.head import hidden_states, token_logprobs
from mlx_dpo.training.layout import FORWARD_PRICE, GPU_FORWARD_PRICE, Layout, Work, lay_out
from mlx_dpo.training.logprobs import pair_logprobs
from mlx_dpo.training.prompts import (
    Kept,
    continue_prompts,
    forked,
    prompt_caches,
    recording,
)


class ScoringPath(Protocol):
    """A way to compute log-probs.

    Attributes:
        name: As it is shown.
        key: Part of the reference cache's key: tells apart what moves a log-prob's last bits.
    """

    @property
    def key(self) -> str:
        """Which path this is, and all that moves a log-prob's last bits."""

    @property
    def name(self) -> str:
        """Which path this is."""

    def __call__(
        self, model: nn.Module, examples: Sequence[PreferenceExample], *, gradient: bool = False
    ) -> mx.array:
        """Log-probs float32 (2, B) of the responses, in nats."""

    def work(self, examples: Sequence[PreferenceExample]) -> Work:
        """Tokens it computes for a batch."""


@dataclass(frozen=True)
class PlainPath:
    """The definition: `pair_logprobs`, two forwards over whole rows with all logits.

    Args:
        max_seq_len: Longest prompt + response in tokens; what is beyond it is cut.
        pad_id: Token id to pad with.
        checkpoint: Whether layers compute again for the gradient instead of keeping what it needs.
        in_turn: Whether chosen rows are scored before rejected ones, and not beside them.
    """

    max_seq_len: int
    pad_id: int
    checkpoint: bool = False
    in_turn: bool = False
    name: ClassVar[str] = "plain"
    key: ClassVar[str] = "plain"

    def __call__(
        self, model: nn.Module, examples: Sequence[PreferenceExample], *, gradient: bool = False
    ) -> mx.array:
        """Log-probs float32 (2, B)."""
        model = gathered_once(checkpointed(model) if self.checkpoint else model)
        return pair_logprobs(
            model,
            examples,
            max_seq_len=self.max_seq_len,
            pad_id=self.pad_id,
            in_turn=self.in_turn,
        )

    def work(self, examples: Sequence[PreferenceExample]) -> Work:
        """Tokens it computes for a batch."""
        layout = lay_out(examples, max_seq_len=self.max_seq_len, share_prompts=False)
        work = layout.work()  # reads every prompt twice, and so does this path
        longest = max((len(row.inputs) for row in layout.rows), default=0)
        return Work(work.real_tokens, 2 * len(examples) * longest, work.unshared_tokens)


@dataclass(frozen=True)
class FastPath:
    """All rows of a batch together, and the head only where a response token is predicted.

    Args:
        max_seq_len: Longest prompt + response in tokens; what is beyond it is cut.
        pad_id: Token id to pad with.
        checkpoint: Whether layers compute again for the gradient instead of keeping what it needs.
        share_prompts: Whether each distinct prompt of a batch is read once for all its responses.
        one_length: Whether rows share a forward only where their prompts are of one length.
        unpadded: Whether prompts share a forward only where they are of one length.
        positions: Length of the model's table of learned positions; None where it has none.
        forward_price: Price of one more forward, in tokens; by default that of this device.
    """

    max_seq_len: int
    pad_id: int
    checkpoint: bool = False
    share_prompts: bool = True
    one_length: bool = False
    unpadded: bool = False
    positions: int | None = None
    forward_price: int = field(
        default_factory=lambda: GPU_FORWARD_PRICE if on_gpu() else FORWARD_PRICE
    )

    @property
    def key(self) -> str:
        """The name, and how rows are laid out where that is not as on a CPU."""
        is_usual = self.forward_price == FORWARD_PRICE
        return self.name if is_usual else f"{self.name}, forward price {self.forward_price}"

    @property
    def name(self) -> str:
        """Which path this is."""
        if not self.share_prompts:
            return "joined"
        if self.unpadded:
            return "shared-prompt, unpadded"
        return "shared-prompt, one length" if self.one_length else "shared-prompt"

    def layout(self, examples: Sequence[PreferenceExample]) -> Layout:
        """How a batch is laid out."""
        return lay_out(
            examples,
            max_seq_len=self.max_seq_len,
            share_prompts=self.share_prompts,
            one_length=self.one_length,
            unpadded=self.unpadded,
            positions=self.positions,
            forward_price=self.forward_price,
        )

    def __call__(
        self, model: nn.Module, examples: Sequence[PreferenceExample], *, gradient: bool = False
    ) -> mx.array:
        """Log-probs float32 (2, B)."""
        layered = checkpointed(model) if self.checkpoint else model
        head = partial(token_logprobs, model, gradient=gradient, frugal=self.checkpoint)
        with heads_together():
            logprobs, slots = _logprobs(layered, head, self.layout(examples), self.pad_id)
        return _summed(logprobs, slots, len(examples))

    def of_tokens(
        self, model: nn.Module, examples: Sequence[PreferenceExample]
    ) -> dict[tuple[int, int], mx.array]:
        """Log-probs float32 (T,) of the tokens of each response, by side and pair.

        Those after which no token is left, or before the first, have none.
        """
        head = partial(token_logprobs, model)
        with heads_together():
            logprobs, slots = _logprobs(model, head, self.layout(examples), self.pad_id)
        ends = np.cumsum([count for _, count in slots]).tolist()
        return {
            slot: logprobs[end - count : end]
            for (slot, count), end in zip(slots, ends, strict=True)
        }

    def work(self, examples: Sequence[PreferenceExample]) -> Work:
        """Tokens it computes for a batch."""
        return self.layout(examples).work()


def _logprobs(
    layered: nn.Module,
    head: Callable[[mx.array, mx.array], mx.array],
    layout: Layout,
    pad_id: int,
) -> tuple[mx.array, list[tuple[tuple[int, int], int]]]:
    """Log-probs (S,) of tokens, the trunk of `layered` below a head that gives them.

    With them, the slot of each response, and how many of the tokens are its own.
    """
    if not layout.rows:
        return mx.zeros(0), []
    prefix = [mx.array([layout.contexts[0][: layout.prefix]])] if layout.prefix else []
    prompts = [
        _padded([layout.contexts[i][layout.prefix :] for i in group.members], group.width, pad_id)
        for group in layout.context_groups
    ]
    responses = [
        _padded([layout.rows[i].inputs for i in group.members], group.width, pad_id)
        for group in layout.row_groups
    ]
    layered = gathered_once(layered, [*prefix, *prompts, *responses])
    before = [_read_prompts(layered, ids, [layout.prefix]) for ids in prefix]
    recorded = [
        _read_prompts(
            *(layered, ids, [len(layout.contexts[i]) - layout.prefix for i in group.members]),
            before,
            layout.prefix,
        )
        for group, ids in zip(layout.context_groups, prompts, strict=True)
    ]
    # A model with fewer caches than layers has layers that read the keys of earlier ones.
    read_again = any(len(caches) < len(layered.layers) for caches in recorded)
    source_of = {
        context: (forward, line)
        for forward, group in enumerate(layout.context_groups)
        for line, context in enumerate(group.members)
    }
    # Often all shorter responses go together and all longer ones: the same prompts twice.
    caches: dict[tuple[int, ...], list[Kept]] = {}
    hidden, targets, slots = [], [], []
    for group, ids in zip(layout.row_groups, responses, strict=True):
        rows = [layout.rows[number] for number in group.members]
        contexts = tuple(row.context for row in rows if row.context is not None)
        if contexts and contexts not in caches:
            caches[contexts] = continue_prompts(
                recorded,
                [source_of[context] for context in contexts],
                [len(layout.contexts[context]) for context in contexts],
                read_again=read_again,
            )
        continued = forked(caches[contexts]) if contexts else None
        states = hidden_states(layered, ids, continued)
        for line, row in enumerate(rows):
            hidden.append(states[line, row.first_scored : len(row.inputs)])
            targets.extend(row.targets[row.first_scored :])
            slots.append((row.slot, len(row.inputs) - row.first_scored))
    return head(mx.concatenate(hidden), mx.array(targets, dtype=mx.int32)), slots


def _read_prompts(
    model: nn.Module,
    ids: mx.array,
    lengths: Sequence[int],
    before: Sequence[Sequence[Kept]] = (),
    prefix: int = 0,
) -> list[Kept]:
    """What layers keep of some prompts. Their logits are never computed.

    Args:
        model: Reads them.
        ids: int32 (prompts, P).
        lengths: Real positions of each.
        before: Caches of the tokens that come before all of them; empty where none do.
        prefix: How many those are.
    """
    told = lengths if min(lengths) < ids.shape[1] else None
    caches = prompt_caches(model, told)
    if before:
        rows = len(ids)
        own = continue_prompts(before, [(0, 0)] * rows, [prefix] * rows, read_again=True)
        caches = [recording(cache, told) for cache in own]
    model(ids, cache=caches)
    return caches


def _padded(rows: Sequence[Sequence[int]], width: int, pad_id: int) -> mx.array:
    ids = np.full((len(rows), width), pad_id, dtype=np.int32)
    for line, row in enumerate(rows):
        ids[line, : len(row)] = row
    return mx.array(ids)


def _summed(
    logprobs: mx.array, slots: Sequence[tuple[tuple[int, int], int]], num_pairs: int
) -> mx.array:
    """Sum the tokens of each response: (S,) to (2, B); a response without tokens sums to 0."""
    sums = {}
    start = 0
    for slot, count in slots:
        sums[slot] = logprobs[start : start + count].sum()
        start += count
    zero = mx.zeros(())
    return mx.stack(
        [mx.stack([sums.get((side, pair), zero) for pair in range(num_pairs)]) for side in range(2)]
    )
