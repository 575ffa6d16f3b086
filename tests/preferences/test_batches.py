"""True epochs: properties that hold for any size, batch and seed."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.preferences.batches import POOL, PROMPT_STEP, EpochOrder, Rows

sizes = st.integers(1, 60)
batch_sizes = st.integers(1, 70)
seeds = st.integers(0, 2**32)


def some_lengths(num_pairs: int) -> Rows:
    """Tokens of prompt, chosen and rejected, as unlike as those of real pairs."""
    return np.random.default_rng(num_pairs).integers((1, 8, 8), (256, 128, 128), (num_pairs, 3))


def take(order: EpochOrder, num_batches: int) -> list[list[int]]:
    return [order.next_batch() for _ in range(num_batches)]


@given(sizes, batch_sizes, seeds)
def test_every_pair_comes_once_an_epoch(num_pairs: int, batch_size: int, seed: int) -> None:
    order = EpochOrder(num_pairs, batch_size, seed)
    for epoch in range(3):
        assert order.state() == {"epoch": epoch, "position": 0}
        batches = take(order, order.batches_per_epoch)
        assert sorted(chain(*batches)) == list(range(num_pairs))


@given(sizes, batch_sizes, seeds)
def test_only_the_last_batch_of_an_epoch_is_smaller(
    num_pairs: int, batch_size: int, seed: int
) -> None:
    order = EpochOrder(num_pairs, batch_size, seed)
    *full, last = take(order, order.batches_per_epoch)
    assert all(len(batch) == batch_size for batch in full)
    assert 1 <= len(last) <= batch_size


@given(sizes, batch_sizes, seeds, st.integers(0, 40))
def test_a_restored_cursor_goes_on_where_it_stopped(
    num_pairs: int, batch_size: int, seed: int, done: int
) -> None:
    """In the middle of an epoch too, and from the cursor and the seed alone."""
    straight = EpochOrder(num_pairs, batch_size, seed)
    take(straight, done)
    resumed = EpochOrder(num_pairs, batch_size, seed)
    resumed.restore(straight.state())
    assert take(resumed, 10) == take(straight, 10)


@given(sizes, st.integers(1, 5), st.integers(1, 5), seeds)
def test_the_order_of_pairs_does_not_depend_on_the_batch_size(
    num_pairs: int, one: int, other: int, seed: int
) -> None:
    orders = [EpochOrder(num_pairs, batch_size, seed) for batch_size in (one, other)]
    first, second = (list(chain(*take(order, order.batches_per_epoch))) for order in orders)
    assert first == second


def test_epochs_and_seeds_differ() -> None:
    order = EpochOrder(20, 20, seed=0)
    first, second = take(order, 2)
    assert first != second
    assert EpochOrder(20, 20, seed=1).next_batch() != first


@pytest.mark.parametrize(("num_pairs", "batch_size"), [(0, 4), (4, 0), (-1, 1)])
def test_nothing_to_hand_out_is_refused(num_pairs: int, batch_size: int) -> None:
    with pytest.raises(ValueError, match="at least one pair and one per batch"):
        EpochOrder(num_pairs, batch_size, seed=0)


@given(sizes, st.integers(1, 5), st.integers(1, 4), seeds)
def test_formed_batches_hold_every_pair_once_an_epoch(
    num_pairs: int, micro_batch: int, accumulated: int, seed: int
) -> None:
    order = EpochOrder(
        num_pairs,
        micro_batch * accumulated,
        seed,
        lengths=some_lengths(num_pairs),
        micro_batch=micro_batch,
    )
    for _ in range(2):
        *full, last = take(order, order.batches_per_epoch)
        assert sorted(chain(*full, last)) == list(range(num_pairs))
        assert all(len(batch) == micro_batch * accumulated for batch in full)
        assert last


@given(sizes, st.integers(1, 5), seeds, st.integers(0, 40))
def test_a_restored_cursor_goes_on_in_the_middle_of_a_pool(
    num_pairs: int, micro_batch: int, seed: int, done: int
) -> None:
    lengths = some_lengths(num_pairs)
    straight = EpochOrder(
        num_pairs, 2 * micro_batch, seed, lengths=lengths, micro_batch=micro_batch
    )
    take(straight, done)
    resumed = EpochOrder(num_pairs, 2 * micro_batch, seed, lengths=lengths, micro_batch=micro_batch)
    resumed.restore(straight.state())
    assert take(resumed, 10) == take(straight, 10)


def test_pairs_of_a_formed_batch_are_of_like_length() -> None:
    """Prompts within a step of `PROMPT_STEP` mostly, and less padding than in a plain shuffle."""
    lengths = some_lengths(512)

    def padding(order: EpochOrder) -> int:
        batches = [lengths[rows] for rows in take(order, 128)]
        return sum(int((batch.max(axis=0) - batch).sum()) for batch in batches)

    formed = EpochOrder(512, 4, seed=3, lengths=lengths)
    assert padding(formed) < 0.6 * padding(EpochOrder(512, 4, seed=3))
    prompts = [np.ptp(lengths[rows, 0] // PROMPT_STEP) for rows in take(formed, 128)]
    assert np.mean(np.array(prompts) == 0) > 0.5


def test_formed_batches_are_no_length_curriculum() -> None:
    """Length says nothing about when in an epoch a pair comes, nor in a pool."""
    lengths = some_lengths(4096)
    order = EpochOrder(4096, 4, seed=5, lengths=lengths)
    total = np.array([lengths[rows].sum() for rows in take(order, 1024)], dtype=float)
    assert abs(np.corrcoef(total, np.arange(1024))[0, 1]) < 0.1
    place = np.arange(1024) % POOL
    assert abs(np.corrcoef(total, place)[0, 1]) < 0.1
    assert abs(np.corrcoef(total[1:], total[:-1])[0, 1]) < 0.15


def test_formed_batches_differ_from_epoch_to_epoch() -> None:
    """Which pairs meet is drawn anew."""
    order = EpochOrder(512, 4, seed=1, lengths=some_lengths(512))
    first, second = ({frozenset(rows) for rows in take(order, 128)} for _ in range(2))
    assert len(first & second) < 13
