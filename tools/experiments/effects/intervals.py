"""Means, rank correlations and their intervals."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

DRAWS = 2000


def ranks(values: Array) -> Array:
    """Ranks from 1 on, float64 (N,); equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Array = (last - (counts - 1) / 2)[inverse]
    return mean


def spearman(x: Array, y: Array) -> float:
    """Spearman's rank correlation; 0 where one of both is constant."""
    a, b = ranks(x) - (len(x) + 1) / 2, ranks(y) - (len(y) + 1) / 2
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm else 0.0


def partial_spearman(x: Array, y: Array, z: Array) -> float:
    """Spearman's correlation of x and y with z held fixed."""
    xy, xz, yz = spearman(x, y), spearman(x, z), spearman(y, z)
    norm = math.sqrt(max(0.0, (1 - xz * xz) * (1 - yz * yz)))
    return (xy - xz * yz) / norm if norm else 0.0


def bootstrap(
    statistic: Callable[[Indices, Indices], float], groups: Sequence[int], num_runs: int = 1
) -> tuple[float, float]:
    """95 % interval of a statistic of rows and runs, by drawing both anew.

    Args:
        statistic: Of the rows and the runs drawn, by number; what is not finite is left out.
        groups: The group of each row. Whole groups are drawn: rows of one prompt are not
            independent.
        num_runs: Runs to draw from.
    """
    numbers = np.array(groups)
    members = [np.flatnonzero(numbers == group) for group in np.unique(numbers)]
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        drawn = rng.integers(len(members), size=len(members))
        runs = rng.integers(num_runs, size=num_runs)
        found.append(statistic(np.concatenate([members[place] for place in drawn]), runs))
    low, high = np.percentile([value for value in found if math.isfinite(value)], [2.5, 97.5])
    return float(low), float(high)


def mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; 0 of a single value."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), error
