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
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs of like confidence.

    Attributes:
        num_pairs: How many.
        low: Least confidence among them.
        high: Greatest.
        confidence: Mean confidence.
        right: Bets that were right; half for a margin of exactly 0.
    """

    num_pairs: int
    low: float
    high: float
    confidence: float
    right: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far confidence and outcome agree.

    Attributes:
        bins: Equal in count as far as it goes, least confident first.
        ece: Expected calibration error: mean over pairs of |accuracy - confidence| of their bin.
        ece_by_chance: What a perfectly calibrated policy would show on average on so few pairs.
    """

    bins: list[Bin]
    ece: float
    ece_by_chance: float


def calibrate(margins: Sequence[float] | Floats) -> Calibration:
    """Reliability of sigmoid(margin) over at least one pair.

    Args:
        margins: (N,) chosen minus rejected reward.
    """
    margin = np.asarray(margins, dtype=np.float64)
    order = np.argsort(np.abs(margin), kind="stable")
    margin = margin[order]
    # With |m| the exponential can't overflow.
    confidence = 1 / (1 + np.exp(-np.abs(margin)))
    right = np.where(margin == 0, 0.5, margin > 0)
    num_bins = min(MOST_BINS, max(1, len(margin) // PAIRS_PER_BIN))
    parts = np.array_split(np.arange(len(margin)), num_bins)
    bins = [
        Bin(
            len(part),
            float(confidence[part[0]]),
            float(confidence[part[-1]]),
            float(confidence[part].mean()),
            float(right[part].sum()),
        )
        for part in parts
    ]
    draws = np.random.default_rng(0).random((_DRAWS, len(margin))) < confidence
    by_chance = np.mean([_ece(confidence, drawn.astype(float), parts) for drawn in draws])
    return Calibration(bins, _ece(confidence, right, parts), float(by_chance))


def _ece(confidence: Floats, right: Floats, parts: Sequence[npt.NDArray[np.intp]]) -> float:
    gaps = sum(abs(right[part].sum() - confidence[part].sum()) for part in parts)
    return float(gaps / len(confidence))
