"""A prompt read once: caches that models of mlx-lm take, through which gradients flow.

The first pass reads prompts and keeps the keys and values of every layer; the second reads
responses, which attend to them. Attention is causal, so a prompt's keys and values don't depend on
what follows: both passes together compute exactly what one pass over prompt + response computes.

Shapes: R rows, K key-value heads, N new positions, P positions of the longest prompt, D head size.
"""

from collections.abc import Sequence
from itertools import groupby

import mlx.core as mx
import numpy as np


class PromptKeys:
    """Cache of one layer for the first pass: keeps the keys and values it is given.

    Attributes:
        offset: Position of the first token, 0.
        keys: (prompts, K, P, D) after the pass.
        values: (prompts, K, P, D) after the pass.
    """

    offset = 0
    keys: mx.array
    values: mx.array

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Called by the layer's attention."""
        self.keys, self.values = keys, values
        return keys, values

    def arrays(self) -> tuple[mx.array, ...]:
        """Inputs of a checkpointed layer: none."""
        return ()

    def with_arrays(self) -> "PromptKeys":
        """Another cache, to compute with."""
        return PromptKeys()

    def recorded(self) -> tuple[mx.array, ...]:
        """Outputs of a checkpointed layer: keys and values."""
        return self.keys, self.values

    def record(self, keys: mx.array, values: mx.array) -> None:
        """Keep the outputs of a checkpointed layer."""
        self.keys, self.values = keys, values


class AfterPrompt:
    """Cache of one layer for the second pass: rows that each continue a prompt.

    Args:
        keys: (R, K, P, D), the prompt of each row, padded on the right.
        values: (R, K, P, D).
        lengths: Real positions of each row's prompt; the largest is P.
        read_again: Whether later rows go on from these: it keeps the prompt's and the new.

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
        self.keys, self.values, self._read_again = keys, values, read_again
        self._lengths = np.array(lengths)
        self._is_uniform = len(set(lengths)) == 1
        self.offset = lengths[0] if self._is_uniform else mx.array(list(lengths))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Called by the layer's attention: the prompt's and the new, (R, K, P + N, D)."""
        both = (
            mx.concatenate([self.keys, keys], axis=2),
            mx.concatenate([self.values, values], axis=2),
        )
        if self._read_again:
            self.keys, self.values = both
        return both

    def arrays(self) -> tuple[mx.array, ...]:
        """Inputs of a checkpointed layer: the prompt's keys and values."""
        return self.keys, self.values

    def with_arrays(self, keys: mx.array, values: mx.array) -> "AfterPrompt":
        """The same cache on other arrays, to compute with."""
        lengths = self._lengths.tolist()
        return AfterPrompt(keys, values, lengths, read_again=self._read_again)

    def recorded(self) -> tuple[mx.array, ...]:
        """Outputs of a checkpointed layer: what later rows go on from."""
        return (self.keys, self.values) if self._read_again else ()

    def record(self, *arrays: mx.array) -> None:
        """Keep the outputs of a checkpointed layer."""
        if arrays:
            self.keys, self.values = arrays

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


def continue_prompts(
    recorded: Sequence[Sequence[PromptKeys | AfterPrompt]],
    sources: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    *,
    read_again: bool = False,
) -> list[AfterPrompt]:
    """Caches, one a layer, for rows that continue recorded prompts.

    Args:
        recorded: For each forward of the first pass, its caches by layer.
        sources: For each row, the forward and the line in it that hold its prompt. Rows of one
            prompt are adjacent.
        lengths: For each row, the length of its prompt.
        read_again: Whether further rows go on from these.
    """
    longest = max(lengths)
    runs = [
        (forward, line, length, len(list(same)))
        for (forward, line, length), same in groupby(
            (*source, length) for source, length in zip(sources, lengths, strict=True)
        )
    ]

    def gathered(layer: int, name: str) -> mx.array:
        pieces = []
        for forward, line, length, count in runs:
            whole = getattr(recorded[forward][layer], name)
            piece = whole[line : line + 1, :, :length]
            if length < longest:
                piece = mx.pad(piece, [(0, 0), (0, 0), (0, longest - length), (0, 0)])
            # Not broadcast: the sum that is its gradient takes MLX's CPU backend 20 times as long.
            pieces += [piece] * count
        return mx.concatenate(pieces) if len(pieces) > 1 else pieces[0]

    return [
        AfterPrompt(
            gathered(layer, "keys"), gathered(layer, "values"), lengths, read_again=read_again
        )
        for layer in range(len(recorded[0]))
    ]
