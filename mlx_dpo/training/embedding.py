"""Embeddings whose gradient is the same in every run: no gather reads a row twice.

The gradient of gathering rows adds what each position contributes to the row it has read. A GPU
adds in any order, so a row that several positions read differs in its last bits from run to run.
Here each distinct id is gathered once, and its row is then repeated by doubling: some of the rows
so far are appended to them, until there is one for each position. No index comes twice, and the
gradient of a row is a sum of pairs in a fixed order. The forward pass copies, so it is exact.

An embedding's gradient has the size of the whole embedding, and each gather makes one. The ids of
all forwards of a batch are therefore gathered together.

Shapes: N positions, D distinct ids, H hidden size.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.models.adaptable import wrapped_module
from mlx_dpo.models.parts import is_embedding

Indices = npt.NDArray[np.int64]


class Repeats(NamedTuple):
    """How the rows of distinct ids become those of all positions.

    Attributes:
        distinct: Ids (D,), sorted.
        doublings: Rows to append, one array after the other; none holds an index twice.
        order: Row of each position (N,), a permutation.
    """

    distinct: Indices
    doublings: list[Indices]
    order: Indices


def repeats(ids: npt.NDArray[Any]) -> Repeats:
    """Plan the rows of int ids (N,)."""
    distinct, inverse, counts = np.unique(ids, return_inverse=True, return_counts=True)
    owner, number = np.arange(len(distinct)), np.zeros(len(distinct), np.int64)
    doublings = []
    held = 1  # copies of each id that is met so often
    while held < counts.max(initial=0):
        appended = np.flatnonzero(number + held < counts[owner])
        doublings.append(appended)
        owner = np.concatenate([owner, owner[appended]])
        number = np.concatenate([number, number[appended] + held])
        held *= 2
    order = np.empty(len(owner), np.int64)
    order[np.argsort(inverse, kind="stable")] = np.lexsort((number, owner))
    return Repeats(distinct, doublings, order)


def gathered_once(model: nn.Module, batch: Sequence[mx.array] = ()) -> Any:
    """A copy of a model, with the same parameters, whose embeddings gather no id twice.

    Args:
        model: Its embeddings stand outside its list of layers, as those of tokens and positions do.
            Those that don't train stay as they are. It is not changed.
        batch: Ids, int32 of any shape, that it will be called with, forward by forward: an
            embedding that gets one of these very arrays gathers for all of them. Other ids, such as
            positions, are gathered where they are met.
    """
    return _exchanged(model, batch) or model


def _exchanged(module: nn.Module, batch: Sequence[mx.array]) -> Any:
    """A copy with its embeddings exchanged; None where it has none."""
    changed = None
    for name in module.children():
        # A copy may hold a plain attribute in front of the module's own entry.
        child = getattr(module, name)
        if is_embedding(child):
            trains = child.trainable_parameters()
            stand_in: Any = _GatheredOnce(child, batch) if trains else None
        elif isinstance(child, nn.Module):
            stand_in = _exchanged(child, batch)
        else:
            continue
        if stand_in is not None:
            changed = changed or copy.copy(module)
            object.__setattr__(changed, name, stand_in)
    return changed


class _GatheredOnce:
    """Replaces an embedding."""

    def __init__(self, embedding: nn.Module, batch: Sequence[mx.array]) -> None:
        self._embedding = embedding
        self._batch = batch
        self._rows: list[mx.array] = []  # of the batch, forward by forward

    def __call__(self, ids: mx.array) -> mx.array:
        for forward, known in enumerate(self._batch):
            if known is ids:
                self._rows = self._rows or self._gathered(self._batch)
                return self._rows[forward]
        # Positions of padding may lie beyond the table; what is read for them is never scored.
        last = wrapped_module(self._embedding).weight.shape[0] - 1
        return self._gathered([mx.minimum(ids, last)])[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._embedding, name)

    def _gathered(self, parts: Sequence[mx.array]) -> list[mx.array]:
        """Rows (..., H) for each part's ids (...)."""
        plan = repeats(np.concatenate([np.array(ids).reshape(-1) for ids in parts]))
        rows = self._embedding(mx.array(plan.distinct))
        for appended in plan.doublings:
            rows = mx.concatenate([rows, rows[mx.array(appended)]])
        rows = rows[mx.array(plan.order)]
        ends = np.cumsum([ids.size for ids in parts])[:-1].tolist()
        split = mx.split(rows, ends) if ends else [rows]
        return [
            piece.reshape(*ids.shape, piece.shape[-1])
            for ids, piece in zip(parts, split, strict=True)
        ]
