"""What a judge did, in numbers that add up, and what in them should make one suspicious."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlx_dpo.workshop.judging.verdicts import Decision

OUTCOMES = ("won", "flip", "tie", "abstain", "failed")


@dataclass(frozen=True, slots=True)
class Summary:
    """The account of a round of judging. ``sum(outcomes.values())`` is the number of contests.

    Attributes:
        rows: Rows of candidates read.
        without_contest: Rows without two different answers that are not blank.
        outcomes: Contests by what became of them; the keys are `OUTCOMES`.
        longer_winners: Won contests whose winner has more characters than the loser.
        shorter_winners: Those whose winner has fewer.
        wins_by_model: Won contests between two models' answers, by the model that won.
        own_answers: Contests in which the judge decided on an answer of its own.
        own_wins: Those it won with one, against another model's.
        own_losses: Those it lost with one, against another model's.
    """

    rows: int
    without_contest: int
    outcomes: dict[str, int]
    longer_winners: int
    shorter_winners: int
    wins_by_model: dict[str, int]
    own_answers: int
    own_wins: int
    own_losses: int

    @property
    def flip_rate(self) -> float | None:
        """Flips among contests with a winner in both orders; None where there are none."""
        decided = self.outcomes["won"] + self.outcomes["flip"]
        return self.outcomes["flip"] / decided if decided else None


def summarise(
    decisions: Sequence[Decision], *, rows: int, without_contest: int, judge_model: str = ""
) -> Summary:
    """Count.

    Args:
        decisions: All of a round.
        rows: Rows of candidates read.
        without_contest: Rows among them that gave no contest.
        judge_model: Name of the judge's model; "" for a rule.
    """
    outcomes = Counter(decision.outcome for decision in decisions)
    won = [decision for decision in decisions if decision.outcome == "won"]
    gaps = [len(d.winner.text.strip()) - len(d.loser.text.strip()) for d in won]
    rivals = [d for d in won if d.winner.model != d.loser.model]
    own = [
        is_same_model(d.contest.first.model, judge_model)
        or is_same_model(d.contest.second.model, judge_model)
        for d in decisions
    ]
    return Summary(
        rows=rows,
        without_contest=without_contest,
        outcomes={name: outcomes[name] for name in OUTCOMES},
        longer_winners=sum(gap > 0 for gap in gaps),
        shorter_winners=sum(gap < 0 for gap in gaps),
        wins_by_model=dict(Counter(d.winner.model for d in rivals)),
        own_answers=sum(own),
        own_wins=sum(is_same_model(d.winner.model, judge_model) for d in rivals),
        own_losses=sum(is_same_model(d.loser.model, judge_model) for d in rivals),
    )


def is_same_model(one: str, other: str) -> bool:
    """Whether two names are of one model, as far as names tell: the last parts are equal."""
    names = [name.rstrip("/").rsplit("/", 1)[-1].casefold() for name in (one, other)]
    return bool(names[0]) and names[0] == names[1]
