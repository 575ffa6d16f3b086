"""A round of judging: what a judge is asked and may say, what its two verdicts come to, the counts.

Each two answers are shown in both orders: a judge that prefers the first place contradicts itself.
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import NamedTuple

from mlx_dpo.errors import MlxDpoError
from mlx_dpo.records import Message, Preference
from mlx_dpo.workshop.candidates import Candidate, Contest

OUTCOMES = ("won", "flip", "tie", "abstain", "failed")
MAX_FAILURES = 8  # in a row: by then the judge is at fault, not the pair
_VERDICT_LINE = re.compile(
    r"[\W_]*(?i:(?:the |my |final )*(?:verdict|answer|response|winner|choice)(?: is)?[\W_]*)?"
    r"(A|B|(?i:tie))[\W_]*"
)
# Where thoughts end that stand before an answer, and marks that some servers leave in a text.
_THOUGHT_END = re.compile(
    r"</(?:seed:)?(?:think|thinking|thought|reasoning)>|\[/THINK\]"
    r"|<\|channel\|>final<\|message\|>"
)
_THOUGHT = re.compile(
    r"\s*(?:<(?:seed:)?(?:think|thinking|thought|reasoning)>|\[THINK\]|<\|channel\|>analysis)"
)
_MARK = re.compile(r"<\|\w+\|>|</s>|<eos>|<end_of_turn>")


class Verdict(StrEnum):
    """Which of two answers, shown as A and B, is better."""

    A = "A"
    B = "B"
    TIE = "tie"
    ABSTAIN = "abstain"  # the judge said something else
    FAILED = "failed"  # no reply: worth asking again

    @property
    def swapped(self) -> "Verdict":
        """The same verdict with the names A and B exchanged."""
        return {Verdict.A: Verdict.B, Verdict.B: Verdict.A}.get(self, self)


class JudgeQuestion(NamedTuple):
    """Two answers to compare, `a` shown first, and the kind of their prompt."""

    prompt: tuple[Message, ...]
    a: str
    b: str
    kind: str

    @property
    def swapped(self) -> "JudgeQuestion":
        """The same answers in the other order."""
        return self._replace(a=self.b, b=self.a)


class Judge:
    """Decides between two answers. The base of all judges."""

    name: str  # as it was named on the command line
    model: str = ""  # name of its model; "" for a rule, or if an endpoint chooses
    concurrency: int = 1  # threads that may ask at a time
    last_failure: str = ""  # reason of the last `Verdict.FAILED`

    def verdict(self, question: JudgeQuestion) -> Verdict:
        """Say which answer is better."""
        raise NotImplementedError

    def stop(self) -> None:
        """Give up waiting for replies, in all threads."""


class NoReplyError(Exception):
    """A judge's model gave no reply, but may give one another time."""


@dataclass(frozen=True, slots=True)
class JudgeDecision:
    """Both verdicts on a contest."""

    contest: Contest
    asked: Verdict  # with the first answer as A
    again: Verdict  # with the second answer as A, in terms of the first order

    @property
    def outcome(self) -> str:
        """One of `OUTCOMES`; only a contest that was won becomes a pair."""
        both = {self.asked, self.again}
        for verdict in (Verdict.FAILED, Verdict.ABSTAIN, Verdict.TIE):
            if verdict in both:
                return str(verdict)
        return "won" if len(both) == 1 else "flip"

    @property
    def ranking(self) -> tuple[Candidate, Candidate]:
        """Winner and loser of a contest that was won."""
        assert self.outcome == "won"
        _, _, first, second = self.contest
        return (first, second) if self.asked is Verdict.A else (second, first)

    @property
    def preference(self) -> Preference:
        """The pair of a contest that was won."""
        chosen, rejected = ((Message("assistant", answer.text),) for answer in self.ranking)
        row = self.contest.row
        return Preference(row.prompt, chosen, rejected, row.kind, self.contest.id)


def judge_all(
    judge: Judge,
    contests: Sequence[Contest],
    *,
    after_contest: Callable[[int], None] = lambda more: None,
) -> list[JudgeDecision]:
    """Decide all contests, in their order; `after_contest` is called with 1 after each.

    The judge is asked from `judge.concurrency` threads; from the caller's alone if that is 1.

    Raises:
        MlxDpoError: If the judge failed several times in a row.
    """
    decisions: list[JudgeDecision] = []
    failures = 0
    with closing(_decisions(judge, contests)) as decided:
        for decision in decided:
            decisions.append(decision)
            after_contest(1)
            failures = failures + 1 if decision.outcome == "failed" else 0
            if failures == MAX_FAILURES:
                raise MlxDpoError(
                    f"{judge.name}: no reply for {failures} pairs in a row "
                    f"({judge.last_failure}); earlier replies are kept: fix the judge and "
                    "run the same command again"
                )
    return decisions


def _decisions(judge: Judge, contests: Sequence[Contest]) -> Generator[JudgeDecision, None, None]:
    if judge.concurrency == 1:
        yield from (decide(judge, contest) for contest in contests)
        return
    pool = ThreadPoolExecutor(judge.concurrency)
    waiting: deque[Future[JudgeDecision]] = deque()
    rest = iter(contests)
    try:
        # A window: decisions are reported soon, and no results pile up.
        for contest in islice(rest, 2 * judge.concurrency):
            waiting.append(pool.submit(decide, judge, contest))
        while waiting:
            yield waiting.popleft().result()
            for contest in islice(rest, 1):
                waiting.append(pool.submit(decide, judge, contest))
    finally:
        if waiting:
            judge.stop()
        # Threads that still run may have a reply to keep.
        pool.shutdown(wait=True, cancel_futures=True)


def decide(judge: Judge, contest: Contest) -> JudgeDecision:
    """Ask in both orders; once, if the first verdict already rules out a winner."""
    row, first, second = contest.row, contest.first, contest.second
    question = JudgeQuestion(row.prompt, first.text, second.text, row.kind)
    asked = judge.verdict(question)
    if asked in (Verdict.ABSTAIN, Verdict.FAILED):
        return JudgeDecision(contest, asked, asked)
    return JudgeDecision(contest, asked, judge.verdict(question.swapped).swapped)


def read_verdict(reply: str) -> Verdict:
    """The verdict in a model's reply: alone on its first or last line.

    Strict on purpose: a sentence that happens to hold an A is no verdict. Thoughts, such as text up
    to ``</think>``, don't count; neither do those that never end.
    """
    answer = _THOUGHT_END.split(reply)[-1]
    if _THOUGHT.match(answer):
        return Verdict.ABSTAIN
    lines = [line.strip() for line in _MARK.sub("", answer).split("\n")]
    lines = [line for line in lines if re.search(r"\w", line)]
    verdicts = set()
    for line in (*lines[:1], *lines[-1:]):
        match = _VERDICT_LINE.fullmatch(line[:100])
        if match:
            verdicts.add(Verdict.TIE if match[1].lower() == "tie" else Verdict(match[1]))
    return verdicts.pop() if len(verdicts) == 1 else Verdict.ABSTAIN


@dataclass(frozen=True, slots=True)
class JudgeSummary:
    """Counts of contests."""

    outcomes: dict[str, int]  # of all contests, by `OUTCOMES`
    longer_winners: int  # won by the answer with more characters
    shorter_winners: int  # won by the answer with fewer
    own_answers: int  # with an answer of the judge's own model
    own_wins: int  # won by such an answer against another model's
    own_losses: int  # lost by such an answer to another model's


def summarize(decisions: Sequence[JudgeDecision], judge_model: str) -> JudgeSummary:
    """Count the decisions of a round by a judge's model ("" for a rule)."""
    outcomes = Counter(decision.outcome for decision in decisions)
    won = [decision.ranking for decision in decisions if decision.outcome == "won"]
    gaps = [len(winner.text.strip()) - len(loser.text.strip()) for winner, loser in won]
    rivals = [(winner.model, loser.model) for winner, loser in won if winner.model != loser.model]
    return JudgeSummary(
        outcomes={name: outcomes[name] for name in OUTCOMES},
        longer_winners=sum(gap > 0 for gap in gaps),
        shorter_winners=sum(gap < 0 for gap in gaps),
        own_answers=sum(
            any(is_same_model(a.model, judge_model) for a in (d.contest.first, d.contest.second))
            for d in decisions
        ),
        own_wins=sum(is_same_model(winner, judge_model) for winner, _ in rivals),
        own_losses=sum(is_same_model(loser, judge_model) for _, loser in rivals),
    )


def is_same_model(one: str, other: str) -> bool:
    """Whether two names are of one model, by their last parts."""
    names = [name.rstrip("/").rsplit("/", 1)[-1].casefold() for name in (one, other)]
    return bool(names[0]) and names[0] == names[1]
