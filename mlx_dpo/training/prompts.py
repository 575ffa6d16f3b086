"""A prompt read once: caches that models of mlx-lm take, through which gradients flow.

The first pass reads prompts and keeps what a layer keeps of them: keys and values, or the states
of a recurrence or a convolution. The second reads responses, which go on from there. What is kept
of a prompt doesn't depend on what follows it, so both passes together compute exactly what one pass
over prompt + response computes.

Shorter prompts are padded on the right. Keys of padding are cut off or masked. A layer with states
gets the length of each prompt, and leaves what comes after out; one that takes no lengths must get
prompts without padding. The self-check finds that out.

Shapes: R rows, K key-value heads, N new positions, P positions of the longest prompt, D head size.
"""

import copy
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Self

import mlx.core as mx
import mlx.nn as nn
import numpy as np


class UnknownCacheError(Exception):
    """A layer keeps something of what it has read that is neither keys and values nor states."""


class LayerCache:
    """What a layer keeps of what it has read.

    What the two passes need of it is here; the rest is what a layer calls on mlx-lm's own caches.
    """

    _held: tuple[mx.array | None, ...] = ()
    _is_new = False

    def arrays(self) -> tuple[mx.array | None, ...]:
        """What it holds: inputs of a checkpointed layer."""
        return self._held

    def with_arrays(self, *arrays: mx.array | None) -> Self:
        """Another cache that holds these arrays, to compute with."""
        other = copy.copy(self)
        other._held, other._is_new = arrays, False
        return other

    def recorded(self) -> tuple[mx.array | None, ...]:
        """What is read later of what the layer put in: outputs of a checkpointed layer."""
        return self._held if self._is_new else ()

    def record(self, *arrays: mx.array | None) -> None:
        """Keep the outputs of a checkpointed layer."""
        self._held = arrays or self._held


class _Keys(LayerCache):
    """Keys and values of an attention layer.

    Attributes:
        start_position: Position of the first key, 0: none is dropped, whatever a layer's window.
    """

    start_position = 0

    def keys_and_values(self) -> tuple[mx.array, ...]:
        """Called by later layers without keys of their own."""
        return self._held  # type: ignore[return-value]

    def maybe_trim_front(self) -> None:
        """Called by models of chunked attention; their masks do without."""


class PromptKeys(_Keys):
    """Cache of one layer for the first pass: keeps the keys and values it is given.

    Attributes:
        offset: Position of the first token, 0.
    """

    offset = 0

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Called by the layer's attention, with (prompts, K, P, D) twice."""
        self._held, self._is_new = (keys, values), True
        return keys, values


class AfterPrompt(_Keys):
    """Cache of one layer for the second pass: rows that each continue a prompt.

    Args:
        keys: (R, K, P, D), the prompt of each row, padded on the right.
        values: (R, K, P, D).
        lengths: Real positions of each row's prompt; the largest is P.
        read_again: Whether these keys and values are read with the new ones: by later layers, or
            by rows that continue these.

    Attributes:
        offset: Position of the first new token: a number where all prompts are of one length,
            else int32 (R,).
    """

    def __init__(
        self,
        keys: mx.array,
        values: mx.array,
        lengths: Sequence[int],
        *,
        read_again: bool = False,
    ) -> None:
        self._held, self._read_again = (keys, values), read_again
        self._lengths = np.array(lengths)
        self._is_uniform = len(set(lengths)) == 1
        self.offset = lengths[0] if self._is_uniform else mx.array(list(lengths))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Called by the layer's attention: the prompt's and the new, (R, K, P + N, D)."""
        old_keys, old_values = self.keys_and_values()
        both = (
            mx.concatenate([old_keys, keys], axis=2),
            mx.concatenate([old_values, values], axis=2),
        )
        if self._read_again:
            self._held, self._is_new = both, True
        return both

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Called by the model: what each of `length` new positions may attend to.

        Returns:
            "causal" where that says it; else bool (N, P + N), or (R, 1, N, P + N) where the
            prompts differ in length. True where attention is allowed.
        """
        longest = int(self._lengths.max())
        windowed = window_size is not None and longest + length > window_size
        if self._is_uniform and not (return_array or windowed):
            return "causal"
        lengths = self._lengths[:1] if self._is_uniform else self._lengths
        new = np.arange(length)
        # Position in its sequence of each query, and of each key: the prompt's, then the new ones.
        query = lengths[:, None, None] + new[None, :, None]
        old = np.broadcast_to(np.arange(longest), (len(lengths), longest))
        key = np.concatenate([old, lengths[:, None] + new], axis=1)[:, None, :]
        is_real = np.concatenate(
            [old < lengths[:, None], np.ones((len(lengths), length), bool)], axis=1
        )[:, None, :]
        mask = is_real & (key <= query)
        if window_size is not None:
            mask &= query < key + window_size
        return mx.array(mask[0] if self._is_uniform else mask[:, None])


class States(LayerCache):
    """Cache of one recurrent layer for the second pass: the states that each row begins with.

    Attributes:
        lengths: Real positions of each row, int32; None where all are real or nothing is recorded.
        left_padding: None: no row is padded on the left.
    """

    left_padding = None

    def __init__(self, states: Sequence[mx.array | None], lengths: mx.array | None = None) -> None:
        self._held, self.lengths = tuple(states), lengths

    def __getitem__(self, slot: int) -> mx.array | None:
        return self._held[slot]

    def __setitem__(self, slot: int, state: mx.array) -> None:
        self._held = (*self._held[:slot], state, *self._held[slot + 1 :])

    def make_mask(self, length: int) -> mx.array | None:
        """Called by the model: bool (R, N), which positions are real; None where all are."""
        return None if self.lengths is None else mx.arange(length) < self.lengths[:, None]

    def advance(self, length: int) -> None:
        """Called by the layer once it has read so many positions."""
        if self.lengths is not None:
            self.lengths = self.lengths - length


class PromptStates(States):
    """The same for the first pass: its states are those at the end of each prompt."""

    def __setitem__(self, slot: int, state: mx.array) -> None:
        super().__setitem__(slot, state)
        self._is_new = True


# Of a layer, or of each part of one.
Kept = LayerCache | tuple[Any, ...]


def prompt_caches(model: nn.Module, lengths: Sequence[int] | None = None) -> list[Kept]:
    """Caches for the first pass, in the places of those that the model makes for itself.

    Args:
        model: A model of mlx-lm's kind.
        lengths: Real positions of each prompt; None where none is padded, or states don't matter.

    Raises:
        UnknownCacheError: If one of the model's caches is of another kind.
    """
    told = None if lengths is None else mx.array(list(lengths))

    def recording(own: Any) -> Kept:
        if own is None or hasattr(own, "update_and_fetch"):
            return PromptKeys()
        if hasattr(own, "caches"):
            return tuple(recording(part) for part in own.caches)
        if hasattr(own, "lengths"):
            return PromptStates([None] * len(own.cache), told)
        raise UnknownCacheError(
            "this model keeps something of a prompt that is neither keys and values nor a state"
        )

    return [recording(own) for own in _own_caches(model) or [None] * len(model.layers)]


def caches_of_whole_rows(model: nn.Module) -> list[Kept] | None:
    """Caches for rows that hold their prompt: None, except where layers read earlier ones' keys.

    A model with fewer caches than layers has such layers. Those of Gemma 3n read keys from a cache;
    without one they compute some that the model was not trained with and does not generate with.
    """
    own = _own_caches(model)
    return prompt_caches(model) if own and len(own) < len(model.layers) else None


def keeps_states(model: nn.Module) -> bool:
    """Whether layers keep states of a recurrence or a convolution of what they have read."""
    parts = [part for own in _own_caches(model) for part in getattr(own, "caches", [own])]
    return any(hasattr(part, "lengths") for part in parts)


def _own_caches(model: nn.Module) -> Sequence[Any]:
    """Those that a model makes for itself; empty where it leaves that to mlx-lm."""
    make = getattr(model, "make_cache", None)
    return make() if make else []


def continue_prompts(
    recorded: Sequence[Sequence[Kept]],
    sources: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    *,
    read_again: bool = False,
) -> list[Kept]:
    """Caches for rows that continue recorded prompts, in the places of the recorded ones.

    Args:
        recorded: For each forward of the first pass, its caches.
        sources: For each row, the forward and the line in it that hold its prompt. Rows of one
            prompt are adjacent.
        lengths: For each row, the length of its prompt.
        read_again: Whether several layers read the same keys and values.
    """
    longest = max(lengths)
    runs = [
        (forward, line, length, len(list(same)))
        for (forward, line, length), same in groupby(
            (*source, length) for source, length in zip(sources, lengths, strict=True)
        )
    ]

    def gathered(wholes: Sequence[Any], *, by_position: bool = False) -> mx.array:
        """From the array of each forward, that of the rows; keys also differ in length."""
        pieces = []
        for forward, line, length, count in runs:
            # One slice: the gradient of each is an array of zeros with a part written into it.
            part = (slice(line, line + 1), *((slice(None), slice(length)) if by_position else ()))
            piece = wholes[forward][part]
            if by_position and length < longest:
                piece = mx.pad(piece, [(0, 0), (0, 0), (0, longest - length), (0, 0)])
            # Not broadcast: the sum that is its gradient takes MLX's CPU backend 20 times as long.
            pieces += [piece] * count
        return mx.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    def continued(caches: Sequence[Any]) -> Kept:
        """From the caches of a layer, one for each forward."""
        if isinstance(caches[0], tuple):
            return tuple(map(continued, zip(*caches, strict=True)))
        if isinstance(caches[0], PromptStates):
            slots = zip(*(cache.arrays() for cache in caches), strict=True)
            return States([None if slot[0] is None else gathered(slot) for slot in slots])
        keys, values = zip(*(cache.keys_and_values() for cache in caches), strict=True)
        return AfterPrompt(
            gathered(keys, by_position=True),
            gathered(values, by_position=True),
            lengths,
            read_again=read_again,
        )

    return [continued(of_layer) for of_layer in zip(*recorded, strict=True)]


def recording(cache: Any, lengths: Sequence[int] | None) -> Kept:
    """A cache of rows that further rows continue: its states are those at the end of each row.

    Args:
        cache: As `continue_prompts` gives it, with `read_again`.
        lengths: Real positions of each row; None where none is padded.
    """
    if isinstance(cache, tuple):
        return tuple(recording(part, lengths) for part in cache)
    if isinstance(cache, States):
        return PromptStates(cache.arrays(), None if lengths is None else mx.array(list(lengths)))
    kept: LayerCache = cache
    return kept


def forked(caches: Sequence[Kept]) -> list[Kept]:
    """Copies that hold the same arrays: a forward changes the caches it gets."""

    def copied(cache: Any) -> Kept:
        if isinstance(cache, tuple):
            return tuple(map(copied, cache))
        other: LayerCache = cache.with_arrays(*cache.arrays())
        return other

    return [copied(cache) for cache in caches]
