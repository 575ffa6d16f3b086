"""What an audit says of one thing it checked, and from where on it says so.

The limits stand here; docs/looking.md gives the reason for each.
"""

from dataclasses import dataclass, field
from typing import Any

from mlx_dpo.insight.audit.shortcuts import Bet
from mlx_dpo.preferences.store import LOPSIDED

OK, LOOK, STOP, UNCHECKED = "ok", "look", "stop", "not checked"

# A bet that wins outside these shares is worth a look, once chance is ruled out. With its whole
# interval outside LOPSIDED, where training warns as well, the model can win without reading.
SUSPICIOUS = (0.4, 0.6)
# Shares of the rows from which a fault is no longer a few rows to mend.
MANY_COPIES = 0.10
MANY_CONTRADICTIONS = 0.05
MANY_CUT = 0.10
MANY_LEAKS = 0.01


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at.

    Attributes:
        rows: Positions in the file, from 1.
        note: What is the matter with them.
    """

    rows: tuple[int, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Check:
    """One verdict.

    Attributes:
        name: What was checked.
        verdict: "ok", "look", "stop" or "not checked".
        reason: Why, with the figures.
        findings: Rows to look at, the worst first.
        figures: The same as numbers.
    """

    name: str
    verdict: str
    reason: str
    findings: list[Finding] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def bet_verdict(score: Bet) -> str:
    """What a bet's record means for training; the same when it is as often wrong as right."""
    low, high = score.interval
    if high < LOPSIDED[0] or low > LOPSIDED[1]:
        return STOP
    is_chance = low <= 0.5 <= high
    if not is_chance and not SUSPICIOUS[0] <= score.auc <= SUSPICIOUS[1]:
        return LOOK
    return OK


def share_verdict(count: int, total: int, many: float) -> str:
    """What so many faulty rows mean: some are mended by hand, many are a broken source."""
    return STOP if count > many * total else LOOK if count else OK
