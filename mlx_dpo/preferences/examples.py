"""Sequences of pairs as token ids, wherever they lie, and how long each is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from mlx_dpo.records import PreferenceExample


class _Examples(Sequence[PreferenceExample], ABC):
    """A sequence of pairs whose slices are lists."""

    @abstractmethod
    def at(self, index: int) -> PreferenceExample:
        """One pair; from the end where `index` is below 0."""

    @abstractmethod
    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N, 3): tokens of prompt, chosen and rejected."""

    @overload
    def __getitem__(self, index: int) -> PreferenceExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreferenceExample]: ...
    def __getitem__(self, index: int | slice) -> PreferenceExample | list[PreferenceExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.at(index)


class StoredExamples(_Examples):
    """Some pairs of a store, read from the disk when they are asked for.

    Args:
        tokens: int32 (T,), memory-mapped.
        bounds: int64 (3 R + 1,), where each part begins.
        rows: int64 (N,), the pairs, as rows of the store.
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.int32],
        bounds: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
    ) -> None:
        self._tokens = tokens
        self._bounds = bounds
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, index: int) -> PreferenceExample:
        """One pair; from the end where `index` is below 0."""
        row = int(self._rows[index])
        a, b, c, d = self._bounds[3 * row : 3 * row + 4].tolist()
        ids = self._tokens[a:d].tolist()
        return PreferenceExample(ids[: b - a], ids[b - a : c - a], ids[c - a :])

    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N, 3): tokens of prompt, chosen and rejected, without reading any."""
        found: npt.NDArray[np.int64] = np.diff(self._bounds).reshape(-1, 3)[self._rows]
        return found


class JoinedExamples(_Examples):
    """Several sequences of pairs, one after the other, as one."""

    def __init__(self, *parts: Sequence[PreferenceExample]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def at(self, index: int) -> PreferenceExample:
        """One pair; from the end where `index` is below 0."""
        place = index + len(self) if index < 0 else index
        for part in self._parts:
            if 0 <= place < len(part):
                return part[place]
            place -= len(part)
        raise IndexError(index)

    def lengths(self) -> npt.NDArray[np.int64]:
        """int64 (N, 3): tokens of prompt, chosen and rejected."""
        return np.concatenate([lengths(part) for part in self._parts])


def lengths(examples: Sequence[PreferenceExample]) -> npt.NDArray[np.int64]:
    """int64 (N, 3): tokens of prompt, chosen and rejected of each pair."""
    if isinstance(examples, _Examples):
        return examples.lengths()
    return np.array([list(map(len, e)) for e in examples], dtype=np.int64).reshape(-1, 3)
