"""What a judge may say of two answers, and what its two verdicts on them come to."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from mlx_dpo.records import Message, Preference
from mlx_dpo.workshop.candidates import Answer
from mlx_dpo.workshop.collection import Contest


class Verdict(StrEnum):
    """Of two answers shown as A and B."""

    A = "A"
    B = "B"
    TIE = "tie"
    ABSTAIN = "abstain"  # anything else a judge may have said
    FAILED = "failed"  # nothing was said: worth asking again

    @property
    def swapped(self) -> "Verdict":
        """The same verdict where A and B are called the other way round."""
        return {Verdict.A: Verdict.B, Verdict.B: Verdict.A}.get(self, self)


class Question(NamedTuple):
    """What a judge is asked.

    Attributes:
        prompt: The turns both answers go on from.
        a: Text of the answer shown first.
        b: Text of the other.
        kind: What the choice teaches; "" when that is not known.
    """

    prompt: tuple[Message, ...]
    a: str
    b: str
    kind: str

    @property
    def swapped(self) -> "Question":
        """The same with the answers in the other order."""
        return self._replace(a=self.b, b=self.a)


class Judge(Protocol):
    """Decides between two answers."""

    name: str

    def verdict(self, question: Question) -> Verdict:
        """Say which is better. Called from several threads where the judge allows it."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a contest.

    Attributes:
        contest: The contest.
        asked: The verdict with the first answer as A.
        again: The verdict with the second answer as A, put in terms of the first order.
    """

    contest: Contest
    asked: Verdict
    again: Verdict

    @property
    def outcome(self) -> str:
        """won, flip, tie, abstain or failed; only what is won becomes a pair."""
        both = {self.asked, self.again}
        for verdict in (Verdict.FAILED, Verdict.ABSTAIN, Verdict.TIE):
            if verdict in both:
                return str(verdict)
        return "won" if len(both) == 1 else "flip"

    @property
    def winner(self) -> Answer:
        """The better answer of a contest that was won."""
        assert self.outcome == "won"
        return self.contest.first if self.asked is Verdict.A else self.contest.second

    @property
    def loser(self) -> Answer:
        """The other."""
        won = self.winner is self.contest.first
        return self.contest.second if won else self.contest.first

    @property
    def preference(self) -> Preference:
        """The pair that a contest that was won becomes."""
        return Preference(
            prompt=self.contest.row.prompt,
            chosen=(Message("assistant", self.winner.text),),
            rejected=(Message("assistant", self.loser.text),),
            kind=self.contest.row.kind,
            id=self.contest.id,
        )


def decide(judge: Judge, contest: Contest) -> Decision:
    """Ask in both orders: a judge that likes the first place contradicts itself, and is found out.

    The second question is spared where the first one alone settles that there is no winner.
    """
    row, first, second = contest.row, contest.first, contest.second
    question = Question(row.prompt, first.text, second.text, row.kind)
    asked = judge.verdict(question)
    if asked in (Verdict.ABSTAIN, Verdict.FAILED):
        return Decision(contest, asked, asked)
    return Decision(contest, asked, judge.verdict(question.swapped).swapped)


_SAID = re.compile(
    r"[\W_]*(?i:(?:the |my |final )*(?:verdict|answer|response|winner|choice)(?: is)?[\W_]*)?"
    r"(A|B|(?i:tie))[\W_]*"
)


def read_verdict(reply: str) -> Verdict:
    """The verdict in what a model said: its first or last line, and nothing else on that line.

    Strict on purpose: a sentence that happens to hold an A is no verdict. Thoughts up to
    ``</think>`` don't count.
    """
    lines: Sequence[str] = reply.rsplit("</think>", 1)[-1].split("\n")
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        return Verdict.ABSTAIN
    found = set()
    for line in (lines[0], lines[-1]):
        said = _SAID.fullmatch(line[:100])
        if said:
            found.add(Verdict.TIE if said[1].lower() == "tie" else Verdict(said[1]))
    return found.pop() if len(found) == 1 else Verdict.ABSTAIN


# --- What a judge did, in numbers that add up, and what in them
# should make one suspicious.


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
