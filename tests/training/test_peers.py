"""A run on several ranks is the run of one process: the same losses and weights, to rounding."""

from pathlib import Path

import pytest

from mlx_dpo.training.peers import Alone, shared_out
from tests.training.ranked import PAIRS, WAYS, largest_distance


def test_what_is_shared_out_goes_to_one_rank_each_the_dearest_first() -> None:
    assert shared_out([5, 1, 1, 9, 3], 2) == [[2, 3], [0, 1, 4]]
    assert shared_out([2, 2, 2, 2], 2) == [[0, 2], [1, 3]]
    assert shared_out([7], 3) == [[0], [], []]
    assert shared_out([], 2) == [[], []]


def test_shares_are_evened_out_where_the_dearest_first_leave_a_gap() -> None:
    costs = [448, 361, 440, 339, 427, 211, 418, 337]
    loads = [sum(costs[index] for index in share) for share in shared_out(costs, 2)]
    assert loads == [1496, 1485]  # and not 1543 and 1438
    of_three = shared_out(costs, 3)
    assert sorted(index for share in of_three for index in share) == list(range(8))


def test_one_process_takes_all_pairs_in_their_order() -> None:
    assert Alone().batches(PAIRS, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.survival
def test_two_ranks_train_to_the_weights_of_one_process(tmp_path: Path) -> None:
    """More ranks, and longer: the row `ranks-equal` of tests.faults.torture."""
    ways = ["accumulating", "fused", "bfloat16"]
    distances = largest_distance(2, tmp_path, 3, ways)
    assert distances.pop("bfloat16") < 1
    assert max(distances.values()) <= 2e-6
    assert set(ways) < set(WAYS)
