"""True epochs: each pair once an epoch, in an order that follows from the seed alone."""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]

# Pairs are sorted within so many micro-batches of a shuffled epoch: enough to find pairs of like
# length, few enough that which pairs meet stays mostly chance.
POOL = 16
# Prompts count as equally long within so many tokens; the longer response decides there.
PROMPT_STEP = 32
# What a checkpoint calls the order that follows from these: in another, its cursor means nothing.
ORDER = f"formed by length in pools of {POOL}"


class EpochOrder:
    """Hands out batches of pair indices, epoch after epoch.

    The order of epoch ``e`` depends on ``(seed, e)`` only, so the cursor ``(epoch, position)`` is
    all a resumed run needs. The last batch of an epoch is smaller where the sizes don't divide;
    it is kept. A batch never holds pairs of two epochs.

    With `lengths`, pairs of like length make a micro-batch: little padding and few forwards. It is
    no curriculum: micro-batches come in random order, see `_formed`.

    Args:
        num_pairs: Pairs in the data set, at least 1.
        batch_size: Pairs per batch, at least 1.
        seed: Decides the order.
        lengths: int (N, 3), tokens of prompt, chosen and rejected; None for a plain shuffle.
        micro_batch: Pairs of a batch that go through the model together; by default all.
    """

    def __init__(
        self,
        num_pairs: int,
        batch_size: int,
        seed: int,
        *,
        lengths: Rows | None = None,
        micro_batch: int | None = None,
    ) -> None:
        if num_pairs < 1 or batch_size < 1:
            raise ValueError(
                f"need at least one pair and one per batch, got {num_pairs}, {batch_size}"
            )
        self.num_pairs = num_pairs
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.position = 0
        self._lengths = lengths
        self._micro_batch = micro_batch or batch_size
        self._order: tuple[int, Rows] | None = None  # of the epoch last asked for

    @property
    def batches_per_epoch(self) -> int:
        """Batches that visit every pair once."""
        return -(-self.num_pairs // self.batch_size)

    def next_batch(self) -> list[int]:
        """Indices of the next batch; moves the cursor."""
        end = self.position + self.batch_size
        batch: list[int] = self._epoch_order(self.epoch)[self.position : end].tolist()
        self.position += len(batch)
        if self.position >= self.num_pairs:
            self.epoch, self.position = self.epoch + 1, 0
        return batch

    def first_epoch(self, size: int | None = None) -> list[list[int]]:
        """Indices of each micro-batch of the first epoch, in turn; the cursor stays.

        Args:
            size: Of other parts instead, such as `batch_size`.
        """
        order, size = self._epoch_order(0).tolist(), size or self._micro_batch
        return [order[i : i + size] for i in range(0, len(order), size)]

    def peek(self) -> list[int]:
        """Indices of the next batch; the cursor stays."""
        cursor = self.state()
        batch = self.next_batch()
        self.restore(cursor)
        return batch

    def state(self) -> dict[str, int]:
        """The cursor, as plain numbers for a checkpoint."""
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from a cursor that `state` returned."""
        self.epoch, self.position = state["epoch"], state["position"]

    def _epoch_order(self, epoch: int) -> Rows:
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(self.num_pairs)
            if self._lengths is not None:
                order = _formed(order, self._lengths, self._micro_batch, rng)
            self._order = epoch, order
        return self._order[1]


def _formed(shuffled: Rows, lengths: Rows, size: int, rng: np.random.Generator) -> Rows:
    """Form micro-batches of like length: sort each pool of a shuffle, cut it, shuffle the pieces.

    What does not fill the last micro-batch stays as shuffled, at the end: pairs of any length.
    """
    whole = len(shuffled) - len(shuffled) % size
    prompt = lengths[:, 0] // PROMPT_STEP
    longer = lengths[:, 1:].max(axis=1)
    parts = []
    for start in range(0, whole, POOL * size):
        pool = shuffled[start : min(start + POOL * size, whole)]
        pool = pool[np.lexsort((longer[pool], prompt[pool]))]
        parts.append(rng.permutation(pool.reshape(-1, size)).reshape(-1))
    return np.concatenate([*parts, shuffled[whole:]])


def _by_need(batches: list[list[int]], tokens: Rows) -> list[list[int]]:
    """Batches in order of the memory they need, the largest first.

    Args:
        batches: Indices of pairs.
        tokens: int (N, 2), tokens of each pair's two rows, prompts included.
    """
    # Layers keep so much a token, attention so much a pair of tokens; about here they are even.
    need = (tokens * (tokens + 1024)).sum(axis=1)
    return sorted(batches, key=lambda rows: -int(need[rows].sum()))


def largest_batches(
    batches: list[list[int]], lengths: Rows, max_seq_len: int, count: int
) -> list[list[int]]:
    """The batches of one step that need most memory; full ones before a smaller last one.

    So they are split again as they are here.

    Args:
        batches: Indices of pairs.
        lengths: int (N, 3), tokens of prompt, chosen and rejected.
        max_seq_len: Longest prompt + response; what is beyond it is cut.
        count: Batches of a step.
    """
    tokens = np.minimum(lengths[:, :1] + lengths[:, 1:], max_seq_len)
    return sorted(_by_need(batches, tokens)[:count], key=len, reverse=True)
