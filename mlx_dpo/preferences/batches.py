"""True epochs: each pair once an epoch, in an order that follows from the seed alone."""

import numpy as np


class EpochOrder:
    """Hands out batches of pair indices, epoch after epoch.

    The order of epoch ``e`` depends on ``(seed, e)`` only, so the cursor ``(epoch, position)`` is
    all a resumed run needs. The last batch of an epoch is smaller where the sizes don't divide;
    it is kept. A batch never holds pairs of two epochs.

    Args:
        num_pairs: Pairs in the data set, at least 1.
        batch_size: Pairs per batch, at least 1.
        seed: Decides the order.
    """

    def __init__(self, num_pairs: int, batch_size: int, seed: int) -> None:
        if num_pairs < 1 or batch_size < 1:
            raise ValueError(
                f"need at least one pair and one per batch, got {num_pairs}, {batch_size}"
            )
        self.num_pairs = num_pairs
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.position = 0

    @property
    def batches_per_epoch(self) -> int:
        """Batches that visit every pair once."""
        return -(-self.num_pairs // self.batch_size)

    def next_batch(self) -> list[int]:
        """Indices of the next batch; moves the cursor."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_pairs)
        batch: list[int] = order[self.position : self.position + self.batch_size].tolist()
        self.position += len(batch)
        if self.position >= self.num_pairs:
            self.epoch, self.position = self.epoch + 1, 0
        return batch

    def state(self) -> dict[str, int]:
        """The cursor, as plain numbers for a checkpoint."""
        return {"epoch": self.epoch, "position": self.position}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from a cursor that `state` returned."""
        self.epoch, self.position = state["epoch"], state["position"]
