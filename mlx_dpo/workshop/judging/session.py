"""A round of judging: all contests of some candidates, several at a time."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice

from mlx_dpo.errors import MlxDpoError
from mlx_dpo.workshop.contests import Contest
from mlx_dpo.workshop.judging.verdicts import Decision, Judge, decide

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
