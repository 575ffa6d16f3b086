"""The processes that make a run together: each takes a share of every step, and sums are shared.

A step stays what it is in one process: the same pairs, order, learning rate and number of updates.
`Alone` is one process and does nothing; `Group` stands on `mx.distributed`. No work of a GPU ever
waits for a peer: what is sent is computed first, and each message is an evaluation of its own, on
the CPU's stream.

Before a sum all ranks `meet`: a table of fixed shape goes round, with a row of every rank. A rank
that fails or is stopped puts its exit code there, wherever the others are by then, and all end with
it. So nothing of a step is applied on one rank and not on another.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple
from zlib import crc32

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from mlx_dpo.errors import PeerError, StoppedError
from mlx_dpo.models.parameters import as_bits
from mlx_dpo.models.parts import by_layer
from mlx_dpo.records import PreferenceExample
from mlx_dpo.training.loss import Metrics

Gradient = dict[str, mx.array]
Floats = npt.NDArray[np.float32]

_WIDTH = 12  # numbers a rank has in the table of a meeting, the first two ours
_LONGEST = 600  # bytes of a message that goes with an exit code
_MEBI = 1 << 20  # a float32 counts to 16 of these
_BEAT, _MOST = 1.0, 100  # seconds between meetings of ranks that score, and rounds at most
STOPPED = StoppedError.exit_code


def shared_out(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Which items each rank takes: the most costly first, each to the rank that has least so far.

    Then the rank that has most gives the one that has least an item, or swaps two, while that
    brings them nearer: with few items a rank that is 3 % of the time.

    Args:
        costs: Of each item.
        ranks: Their number.

    Returns:
        Indices in ascending order, for each rank; none for some where there are fewer items.
    """
    loads, shares = [0] * ranks, [list[int]() for _ in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        least = loads.index(min(loads))
        loads[least] += costs[index]
        shares[least].append(index)
    while gap := max(loads) - min(loads):
        most, least = loads.index(max(loads)), loads.index(min(loads))
        given = np.array([costs[index] for index in shares[most]])
        taken = np.array([0, *(costs[index] for index in shares[least])])  # 0: none is taken
        moved = given[:, None] - taken
        gaps = np.where((moved > 0) & (moved < gap), abs(gap - 2 * moved), gap)
        if gaps.min() == gap:
            break
        give, take = divmod(int(gaps.argmin()), len(taken))
        loads[most] -= int(moved[give, take])
        loads[least] += int(moved[give, take])
        back = [shares[least].pop(take - 1)] if take else []
        shares[least].append(shares[most].pop(give))
        shares[most] += back
    return [sorted(share) for share in shares]


class Sum(NamedTuple):
    """A layer's gradient on its way: names, what this rank adds, and the sum over all of them."""

    names: list[str]
    mine: list[mx.array]
    total: mx.array


class Alone:
    """One process. All is its own, and nothing is sent.

    Attributes:
        rank: Of this process, from 0.
        size: How many there are.
        due: Sums of layers that are asked for and not evaluated.
    """

    rank, size = 0, 1

    def __init__(self) -> None:
        self.due: deque[Sum] = deque()

    def shares(self, examples: Sequence[PreferenceExample]) -> list[list[int]]:
        """Which pairs of a step each rank computes, by tokens; indices in ascending order."""
        return shared_out([sum(map(len, example)) for example in examples], self.size)

    def batches(self, examples: Sequence[PreferenceExample], size: int) -> list[list[int]]:
        """This rank's share of a step, in batches of `size`; indices."""
        return in_batches(self.shares(examples)[self.rank], size)

    def meet(self, what: str, values: Sequence[float] = (), *, code: int = 0) -> Floats:
        """See `Group.meet`."""
        return np.array([values], np.float32)

    def rounds(
        self, batches: Iterable[Sequence[int]]
    ) -> Iterator[tuple[Sequence[Sequence[int]], int]]:
        """Some batches, whose neighbours are of like size, in rounds of one for each rank.

        The ranks meet every few rounds: none waits at the end for all that another has left.

        Returns:
            This rank's batches of each round, one or none, and the pairs of all ranks.
        """
        batches = list(batches)
        for first in range(0, len(batches), self.size):
            each = batches[first : first + self.size]
            yield each[self.rank : self.rank + 1], sum(map(len, each))

    def totals(self, mine: Metrics) -> Metrics:
        """Each number of a step, summed over all ranks."""
        return mine

    def sums(self, model: nn.Module, gradient: Gradient) -> Gradient:
        """The gradient summed over all ranks, unevaluated; `due` has what is to be evaluated.

        Args:
            model: Its layers make a message each, in the order in which gradients become known.
            gradient: This rank's, weighted by its share of the pairs of the step.
        """
        return gradient

    def complete(self) -> list[str]:
        """Evaluate the sum that is due first, whose part here is evaluated; its names."""
        return self.due.popleft().names

    def found(self, mine: Floats | None, num_pairs: int) -> Floats | None:
        """The log-probs (2, N) that rank 0 has found; None where it has none."""
        return mine

    def table(self, what: str, mine: Floats) -> Floats:
        """An array summed over all ranks; each has zeros where others have something."""
        return mine


class Group(Alone):
    """Several processes, connected by `mx.distributed`.

    Args:
        group: As `mx.distributed.init` returns it.
        names: What to call each rank's machine; empty where there is nothing to tell.

    Attributes:
        around: Entered around each message, with what it is for: a watchdog's deadline.
        hold: Entered around messages that belong together: a signal has to wait.
        is_over: Whether the ranks have parted: one has failed, and all know, or one is lost.
        is_lost: Whether one is lost.
    """

    def __init__(self, group: Any, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.rank, self.size = int(group.rank()), int(group.size())
        self.names = list(names) or [""] * self.size
        self.around: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext()
        self.hold: Callable[[], AbstractContextManager[None]] = nullcontext
        self.is_over = self.is_lost = False
        self._group = group
        self._is_within = False  # messages that follow one another
        self._held = ExitStack()

    def called(self, rank: int) -> str:
        """``rank 1 (mac-b)``."""
        return f"rank {rank}" + (f" ({self.names[rank]})" if self.names[rank] else "")

    def meet(self, what: str, values: Sequence[float] = (), *, code: int = 0) -> Floats:
        """Wait for all ranks, and exchange a few numbers.

        Args:
            what: The moment; all ranks must be at the same.
            values: Numbers of this rank, as many on all.
            code: The exit code of a rank that is about to end.

        Returns:
            float32 (ranks, numbers).

        Raises:
            StoppedError: If a rank was stopped.
            PeerError: If one has failed or is lost.
        """
        table = np.zeros((self.size, _WIDTH), np.float32)
        table[self.rank, : 2 + len(values)] = (code, crc32(what.encode()) >> 8, *values)
        table = np.array(self._message(mx.array(table), what))
        if table[:, 0].any():
            self._part(int(np.flatnonzero(table[:, 0])[0]), table, "")
        if (table[:, 1] != table[self.rank, 1]).any():
            self.is_over = True
            raise PeerError(f"the ranks are at different points of the run, this one at {what}", 1)
        return table[:, 2 : 2 + len(values)]

    def tell(self, code: int, text: str) -> bool:
        """Let all ranks end with an exit code. Whether they know now.

        In the middle of a sum they can't: they notice that this rank is gone.
        """
        if self.is_over or self.due or self._is_within:
            return False
        table = np.zeros((self.size, _WIDTH), np.float32)
        table[self.rank, 0] = code
        try:
            table = np.array(self._message(mx.array(table), "the others"))
            self._part(int(np.flatnonzero(table[:, 0])[0]), table, text)
        except (PeerError, StoppedError):
            pass
        return not self.is_lost

    def totals(self, mine: Metrics) -> Metrics:
        """See `Alone.totals`; a signal waits from here until the sums are complete."""
        self.due.clear()  # of a step that was refused for its loss, on all ranks alike
        self._held.close()
        self._held.enter_context(self.hold())
        table = self.meet("step", list(mine.values())).astype(np.float64)
        return dict(zip(mine, table.sum(axis=0).tolist(), strict=True))

    def sums(self, model: nn.Module, gradient: Gradient) -> Gradient:
        """See `Alone.sums`; float32, whatever the gradient is."""
        found = {}
        for names in by_layer(model):
            # Not one message an array: a small one costs as much time as a large one.
            mine = mx.concatenate([gradient[n].astype(mx.float32).reshape(-1) for n in names])
            total = mx.distributed.all_sum(mine, group=self._group, stream=mx.cpu)
            self.due.append(Sum(names, [mine], total))
            ends = np.cumsum([gradient[n].size for n in names])[:-1].tolist()
            for name, part in zip(names, mx.split(total, ends), strict=True):
                found[name] = part.reshape(gradient[name].shape)
        return {name: found[name] for name in gradient}

    def complete(self) -> list[str]:
        """See `Alone.complete`.

        Raises:
            PeerError: If a rank is lost.
        """
        layer = self.due[0]
        layer.mine.clear()  # without another name for it, MLX sums in the buffer itself
        self._send(layer.total, "a sum of gradients")
        names = super().complete()
        if not self.due:
            self._held.close()
        return names

    def rounds(
        self, batches: Iterable[Sequence[int]]
    ) -> Iterator[tuple[Sequence[Sequence[int]], int]]:
        """See `Alone.rounds`; after the first they meet about once a `_BEAT`."""
        between = left = 1
        begin = time.monotonic()
        for each in super().rounds(batches):
            yield each
            left -= 1
            if not left:
                with self.hold():
                    spent = self.meet("scores so far", [(time.monotonic() - begin) / between])
                between = left = int(np.clip(_BEAT / max(float(spent.max()), 1e-6), 1, _MOST))
                begin = time.monotonic()

    def found(self, mine: Floats | None, num_pairs: int) -> Floats | None:
        """See `Alone.found`."""
        if not self.meet("what is found", [mine is not None])[0, 0]:
            return None
        return self.table("log-probs", mine if mine is not None else np.zeros((2, num_pairs), "f4"))

    def table(self, what: str, mine: Floats) -> Floats:
        """See `Alone.table`."""
        with self._together():
            self.meet(what)
            return np.array(self._message(mx.array(mine), what))

    def texts(self, what: str, mine: str) -> list[str]:
        """A text of each rank."""
        data = np.frombuffer(mine.encode(), np.uint8)
        with self._together():
            sizes = self.meet(what, divmod(len(data), _MEBI)) @ np.array([_MEBI, 1])
            table = np.zeros((self.size, int(sizes.max())), np.uint8)
            table[self.rank, : len(data)] = data
            table = np.array(self._message(mx.array(table), what))
        return [table[rank, : int(n)].tobytes().decode() for rank, n in enumerate(sizes)]

    def of_first(self, what: str, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        """The arrays of rank 0, bit by bit; all ranks have the same names, shapes and dtypes."""
        found = {}
        with self._together():
            self.meet(what)
            for name, array in arrays.items():
                bits = as_bits(array)
                mine = bits if self.rank == 0 else mx.zeros_like(bits)
                found[name] = self._message(mine, what).view(array.dtype)
        return found

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Messages that a rank can't leave between, not even to tell that it failed."""
        with self.hold():
            self._is_within = True
            yield
            self._is_within = False

    def _message(self, array: mx.array, what: str) -> mx.array:
        """The sum of an array over all ranks."""
        mx.eval(array)
        total = mx.distributed.all_sum(array, group=self._group, stream=mx.cpu)
        self._send(total, what)
        return total

    def _send(self, total: mx.array, what: str) -> None:
        try:
            with self.around(what):
                mx.eval(total)
        except RuntimeError as error:
            self.is_over = self.is_lost = True
            raise PeerError(
                f"a peer of rank {self.rank} is lost, or the link to it ({error})"
            ) from None

    def _part(self, failed: int, table: Floats, text: str) -> None:
        """Hear why a rank ends, and end too.

        Raises:
            StoppedError: If it was stopped.
            PeerError: If not.
        """
        self.is_over = True
        data = text.encode()[:_LONGEST]
        said = np.zeros((self.size, _LONGEST), np.uint8)
        said[self.rank, : len(data)] = np.frombuffer(data, np.uint8)
        said = np.array(self._message(mx.array(said), "the others"))
        code = int(table[failed, 0])
        reason = said[failed].tobytes().rstrip(b"\0").decode(errors="ignore")
        line = f"{self.called(failed)}: {reason}" if failed != self.rank else reason
        raise StoppedError(line) if code == STOPPED else PeerError(line, code)


def in_batches(rows: list[int], size: int) -> list[list[int]]:
    """Rows in their order, some at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
