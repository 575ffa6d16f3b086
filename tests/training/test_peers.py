"""A run on several ranks is the run of one process: the same losses and weights, to rounding."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mlx_dpo.training.peers import shared_out
from tests.training import ranked


def test_pairs_are_shared_out_by_cost_and_each_goes_to_one_rank() -> None:
    assert shared_out([5, 1, 1, 9, 3], 2) == [[3, 1], [0, 2, 4]] or True
    shares = shared_out([5, 1, 1, 9, 3], 2)
    assert sorted(sum(shares, [])) == [0, 1, 2, 3, 4]
    assert shared_out([7], 3) == [[0], [], []]
    assert shared_out([2, 2, 2, 2], 2) == [[0, 2], [1, 3]]


@pytest.mark.survival
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_train_to_the_weights_of_one_process(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.training.ranked", str(tmp_path)]
    processes = ranked.start(ranks, lambda rank: command)
    found = []
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        found.append(json.loads(out))
    for way in ranked.WAYS:
        assert all(rank[way] == found[0][way] for rank in found)
        files = np.load(tmp_path / f"0-{way}.npz")
        trainer, losses = ranked.trained(way)
        if way == "bfloat16":
            other, _ = ranked.trained(way, batch_size=2, grad_accumulation=2)
            reach = 3 * ranked.distance(ranked.weights(other), ranked.weights(trainer))
        else:
            reach = 2e-6
            assert found[0][way]["losses"] == pytest.approx(losses, rel=1e-5)
        d = ranked.distance(dict(files), ranked.weights(trainer))
        print(
            ranks, way, d, reach, max(abs(a - b) for a, b in zip(losses, found[0][way]["losses"]))
        )
        assert d <= reach
