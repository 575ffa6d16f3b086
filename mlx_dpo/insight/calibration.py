"""Does sigmoid(margin) mean what it says: of pairs given 0.8, are four in five ranked right?

The chosen answer always won, so sigmoid(margin) set against "chosen won" has one outcome only, and
says nothing. A judge who doesn't know the sides would see each pair in both orders, given s and
1 - s, one of them right. Both say the same thing, so each pair counts once, in the order the policy
bets on: its confidence is sigmoid(|margin|), at least one half, and the outcome is whether the bet
was right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MOST_BINS = 10
PAIRS_PER_BIN = 10  # at least; fewer, and a bin's accuracy is mostly chance
MOST_DRAWN = 1 << 20  # random numbers in memory at a time, or as many as there are pairs
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class ConfidenceBin:
    """Pairs of like confidence: its least, greatest and mean.

    `right` counts the bets that were right, half for a margin of exactly 0.
    """

    num_pairs: int
    low: float
    high: float
    confidence: float
    right: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far confidence and outcome agree, in bins of equal count, least confident first.

    `ece` is the expected calibration error: the mean over pairs of |accuracy - confidence| of their
    bin. `ece_by_chance` is its mean for a perfectly calibrated policy on so many pairs.
    """

    bins: list[ConfidenceBin]
    ece: float
    ece_by_chance: float


def reliability(margins: Sequence[float] | Floats) -> Reliability:
    """Reliability of sigmoid(margin), from (N,) chosen minus rejected rewards, N at least 1."""
    margin = np.asarray(margins, dtype=np.float64)
    margin = margin[np.argsort(np.abs(margin), kind="stable")]
    # With |m| the exponential can't overflow.
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = np.where(margin == 0, 0.5, margin > 0)
    num_bins = min(MOST_BINS, max(1, len(margin) // PAIRS_PER_BIN))
    # Rows are sorted, so each bin is a slice.
    parts = [slice(p[0], p[-1] + 1) for p in np.array_split(np.arange(len(margin)), num_bins)]
    bins = [
        ConfidenceBin(
            len(confidence[part]),
            float(confidence[part][0]),
            float(confidence[part][-1]),
            float(confidence[part].mean()),
            float(right[part].sum()),
        )
        for part in parts
    ]
    ece = float(_ece(confidence, right[None], parts)[0])
    return Reliability(bins, ece, _ece_by_chance(confidence, parts))


def _ece_by_chance(confidence: Floats, parts: Sequence[slice]) -> float:
    """Mean ECE of outcomes drawn as predicted, a block of draws at a time."""
    generator = np.random.default_rng(0)
    at_once = max(1, MOST_DRAWN // len(confidence))
    eces = [
        _ece(confidence, generator.random((num, len(confidence))) < confidence, parts)
        for num in (min(at_once, _DRAWS - start) for start in range(0, _DRAWS, at_once))
    ]
    return float(np.concatenate(eces).mean())


def _ece(
    confidence: Floats, right: npt.NDArray[np.float64 | np.bool_], parts: Sequence[slice]
) -> Floats:
    """Expected calibration errors (D,) of D sets of outcomes (D, N)."""
    gaps = np.zeros(len(right))
    for part in parts:
        gaps += np.abs(right[:, part].sum(axis=1) - confidence[part].sum())
    return gaps / len(confidence)
