"""A run on several ranks is the run of one process: the same losses and weights, to rounding."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from mlx_dpo.records import PreferenceExample
from mlx_dpo.training import peers
from mlx_dpo.training.peers import Alone, Floats, Group, shared_out
from mlx_dpo.training.reference import score_in_batches
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


class Rank(Group):
    """One of two ranks that sends nothing; the other is as slow as this one.

    Attributes:
        met: The number of batches that were scored when it met the other, each time.
        now: Seconds.
    """

    def __init__(self, rank: int) -> None:
        super().__init__(SimpleNamespace(rank=lambda: rank, size=lambda: 2), ["", ""])
        self.met, self.now, self.scored = list[int](), 0.0, 0

    def meet(self, what: str, values: Sequence[float] = (), *, code: int = 0) -> Floats:
        self.met.append(self.scored)
        return np.array([values, values], np.float32)

    def table(self, what: str, mine: Floats) -> Floats:
        return mine


@pytest.mark.parametrize(
    ("seconds", "meetings"), [(200.0, [1, 2, 3, 4, 5]), (0.4, [1, 3, 5]), (0.01, [1])]
)
def test_ranks_that_score_meet_often_enough_to_tell_a_slow_one_from_a_lost_one(
    seconds: float, meetings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: dict[int, list[int]] = {0: [], 1: []}
    met = []
    for number in done:
        rank = Rank(number)
        monkeypatch.setattr(peers, "time", SimpleNamespace(monotonic=lambda rank=rank: rank.now))

        def score(batch: Sequence[PreferenceExample], rank: Rank = rank) -> mx.array:
            rank.now += seconds
            rank.scored += 1
            return mx.ones((2, len(batch)))

        batches = [[0, 1], [2], [3, 4], [5], [6], [7], [8], [9], [0]]  # one more for the first
        score_in_batches(
            *(score, PAIRS),
            batch_size=2,
            batches=batches,
            after_batch=done[number].append,
            peers=rank,
        )
        met.append(rank.met)
    assert met[0] == meetings
    assert [min(count, 4) for count in met[0]] == met[1]  # they meet at the same moments
    assert done[0] == done[1] == [3, 3, 2, 2, 1]


@pytest.mark.survival
def test_two_ranks_train_to_the_weights_of_one_process(tmp_path: Path) -> None:
    """More ranks, and longer: the row `ranks-equal` of tests.faults.torture."""
    ways = ["accumulating", "fused", "bfloat16"]
    distances = largest_distance(2, tmp_path, 3, ways)
    assert distances.pop("bfloat16") < 1
    assert max(distances.values()) <= 2e-6
    assert set(ways) < set(WAYS)
