"""Judges that are rules: for drills, for tests, and for what a rule can tell."""

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

from mlx_dpo.errors import DataError, MlxDpoError, UsageError
from mlx_dpo.preferences.json_text import Finding, raw_rows
from mlx_dpo.preferences.reader import text_digest
from mlx_dpo.preferences.schema import read_messages, read_text
from mlx_dpo.records import Message
from mlx_dpo.workshop.collection import Contest
from mlx_dpo.workshop.judge.verdicts import Decision, Judge, Question, Verdict, decide

RULES = "rule:shorter, rule:longer, rule:regex:PATTERN, rule:exact:FILE"

# How good an answer to a prompt is; None where the rule can't tell. Equal scores tie.
Score = Callable[[tuple[Message, ...], str], float | None]


class RuleJudge:
    """The answer with the higher score is better.

    Args:
        name: What was typed to get it.
        score: Its rule.
    """

    def __init__(self, name: str, score: Score) -> None:
        self.name = name
        self._score = score

    def verdict(self, question: Question) -> Verdict:
        """Abstains where the rule can't tell of one of the answers."""
        a, b = (self._score(question.prompt, text) for text in (question.a, question.b))
        if a is None or b is None:
            return Verdict.ABSTAIN
        return Verdict.TIE if a == b else Verdict.A if a > b else Verdict.B


def rule_judge(name: str) -> RuleJudge:
    """The judge of a name such as ``rule:shorter``.

    - ``shorter``, ``longer``: by characters, without the white space around.
    - ``regex:PATTERN``: an answer in which Python's ``re.search`` finds the pattern.
    - ``exact:FILE``: an answer that equals the right one, white space around aside. The file has
      a JSON object a line, with ``prompt`` and ``answer``.

    Raises:
        UsageError: If there is no such rule or file, or the pattern is none.
        DataError: If the file can't be read as such.
    """
    _, _, rule = name.partition(":")
    what, _, argument = rule.partition(":")
    if rule == "shorter":
        return RuleJudge(name, lambda _, text: -len(text.strip()))
    if rule == "longer":
        return RuleJudge(name, lambda _, text: len(text.strip()))
    if what == "regex" and argument:
        return RuleJudge(name, _matches(argument))
    if what == "exact" and argument:
        return RuleJudge(name, _equals(Path(argument)))
    raise UsageError(f"--judge {name}: no such rule; there are {RULES}")


def _matches(pattern: str) -> Score:
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--judge: {pattern!r} is no regular expression: {error}") from None
    return lambda _, text: float(wanted.search(text) is not None)


def _equals(file: Path) -> Score:
    right: dict[bytes, str] = {}
    for raw in raw_rows(file):
        found: list[Finding] = list(raw.findings)
        row = raw.value if isinstance(raw.value, dict) else {}
        prompt = read_messages(row, "prompt", "user", found)
        answer = read_text(row.get("answer"), "answer", found)
        if prompt is None or answer is None:
            reason = found[0].reason if found else "key 'prompt' is missing"
            raise DataError(f"{file}:{raw.line}: {reason}; a row is a 'prompt' and its 'answer'")
        right[text_digest(prompt)] = answer.strip()
    if not right:
        raise DataError(f"{file}: no answers in the file")

    def score(prompt: tuple[Message, ...], text: str) -> float | None:
        answer = right.get(text_digest(prompt))
        return None if answer is None else float(text.strip() == answer)

    return score


# --- A round of judging: all contests of some candidates, several at
# a time.


MAX_FAILURES = 8  # in a row: by then it is not the pair, it is the judge


def judge_all(
    judge: Judge,
    contests: Sequence[Contest],
    *,
    concurrency: int = 1,
    stop: Callable[[], None] = lambda: None,
    after_contest: Callable[[int], None] = lambda more: None,
) -> list[Decision]:
    """Decide all contests, in their order.

    Args:
        judge: Who decides. With `concurrency` above 1 it is asked from that many threads.
        contests: What there is to decide.
        concurrency: Contests at a time. With 1, everything happens in the caller's thread.
        stop: Tells the judge to give up waiting, where the round ends before its time.
        after_contest: Told of each one more.

    Raises:
        MlxDpoError: If the judge failed several times in a row.
    """
    decisions: list[Decision] = []
    failures = 0
    with closing(_decided(judge, contests, concurrency, stop)) as decided:
        for decision in decided:
            decisions.append(decision)
            after_contest(1)
            failures = failures + 1 if decision.outcome == "failed" else 0
            if failures == MAX_FAILURES:
                reason = getattr(judge, "last_failure", "")
                raise MlxDpoError(
                    f"{judge.name}: no reply for {failures} pairs in a row ({reason}); what it "
                    "said before is kept: see to it, and give the same command again"
                )
    return decisions


def _decided(
    judge: Judge, contests: Iterable[Contest], concurrency: int, stop: Callable[[], None]
) -> Generator[Decision, None, None]:
    if concurrency == 1:
        yield from (decide(judge, contest) for contest in contests)
        return
    pool = ThreadPoolExecutor(concurrency)
    waiting: deque[Future[Decision]] = deque()
    more = iter(contests)
    try:
        # A window, so that what is decided is seen soon and nothing piles up.
        for contest in islice(more, 2 * concurrency):
            waiting.append(pool.submit(decide, judge, contest))
        while waiting:
            yield waiting.popleft().result()
            for contest in islice(more, 1):
                waiting.append(pool.submit(decide, judge, contest))
    finally:
        if waiting:
            stop()
        # Threads that are still at it may have a reply to keep.
        pool.shutdown(wait=True, cancel_futures=True)
