"""True epochs: properties that hold for any size, batch and seed."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_dpo.preferences.batches import EpochOrder

sizes = st.integers(1, 60)
batch_sizes = st.integers(1, 70)
seeds = st.integers(0, 2**32)


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
