"""`mlx_dpo data judge`: a rule or a model decides which answer is better."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from mlx_dpo.cli import options
from mlx_dpo.errors import DataError, StoppedError, UsageError

if TYPE_CHECKING:
    from mlx_dpo.workshop.collection import Contest
    from mlx_dpo.workshop.judge.verdicts import Decision, Judge, Summary


class _Options(NamedTuple):
    """How a model is asked."""

    model: str
    rubrics: str | None
    concurrency: int
    timeout: float
    max_tokens: int


@click.command(short_help="Let a rule or a model decide between answers.")
@click.argument("candidates", metavar="CANDIDATES", type=options.Name())
@click.option(
    "--judge",
    "judge_name",
    required=True,
    metavar="JUDGE",
    help="rule:NAME, a model's folder or hub id, or http://HOST/v1.",
)
@options.out("Where pairs go.", default="preferences.jsonl")
@options.overwrite
@click.option("--model", default="", metavar="NAME", help="Which model of an endpoint to ask.")
@options.path(
    "--rubrics",
    "What makes an answer better, a text file KIND.txt each. Made, to be edited, if missing.",
    metavar="FOLDER",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Pairs an endpoint is asked about at a time.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds an endpoint has for a reply.",
)
@options.max_tokens(16, "Longest reply of a model. Give more to one that thinks first.")
def judge(
    candidates: str,
    judge_name: str,
    out: str,
    overwrite: bool,
    model: str,
    rubrics: str | None,
    concurrency: int,
    timeout: float,
    max_tokens: int,
) -> None:
    """Decide between the answers of a file of candidates, and write the pairs.

    Each two answers are shown in both orders. Only where the same answer wins both times do they
    become a pair; flips, ties and abstentions are counted and dropped. Of more than two answers
    to a prompt, every two meet.

    A model's replies are kept in OUT.replies.jsonl: the same command goes on after a stop. A key
    for an endpoint is read from the environment variable MLX_DPO_JUDGE_KEY.

    \b
    Rules
      rule:shorter, rule:longer   by characters
      rule:regex:PATTERN          an answer in which the pattern is found
      rule:exact:FILE             an answer that equals the right one; FILE has a JSON object a
                                  line, {"prompt": ..., "answer": ...}

    \b
    Examples:
      mlx_dpo data judge candidates.jsonl --judge rule:shorter
      mlx_dpo data judge candidates.jsonl --judge path/to/instruct-model
      mlx_dpo data judge candidates.jsonl --judge http://127.0.0.1:8080/v1
    """
    from mlx_dpo.files import check_writable, write_file
    from mlx_dpo.preferences.reader import preference_line
    from mlx_dpo.workshop.candidates import load_candidates
    from mlx_dpo.workshop.collection import contests_of
    from mlx_dpo.workshop.judge.verdicts import summarise

    path = Path(out)
    if path.exists() and not overwrite:
        raise UsageError(f"{out}: is there already; --overwrite replaces it")
    check_writable(path)
    rows = load_candidates(candidates)
    found = [contests_of(row) for row in rows]
    contests = [contest for some in found for contest in some]
    if not contests:
        raise DataError(f"{candidates}: no prompt has two different answers to choose between")
    options = _Options(model, rubrics, concurrency, timeout, max_tokens)
    with _open_judge(judge_name, path, options) as (chosen, asked):
        decisions = _decide(chosen, contests, asked)
    won = [decision.preference for decision in decisions if decision.outcome == "won"]
    write_file(path, "".join(map(preference_line, won)))
    summary = summarise(
        decisions, rows=len(rows), without_contest=found.count([]), judge_model=asked.name
    )
    _show(summary, out)
    _warn(summary, asked.name, chosen)


class _Model(NamedTuple):
    """A model that can be asked.

    Attributes:
        ask: From a text to its reply.
        identity: Whose replies they are.
        name: What to call it; "" where an endpoint chooses.
        at_a_time: Pairs it takes at a time.
        close: Ends all asking.
    """

    ask: Callable[[str], str]
    identity: str
    name: str
    at_a_time: int
    close: Callable[[], None] = lambda: None


@contextmanager
def _open_judge(name: str, out: Path, options: _Options) -> "Iterator[tuple[Judge, _Model]]":
    """The judge of a name, and the model behind it."""
    from mlx_dpo.workshop.journal import Journal
    from mlx_dpo.workshop.judge.asking import AskingJudge, built_in_rubrics, read_rubrics
    from mlx_dpo.workshop.judge.rules import rule_judge

    if name.startswith("rule:"):
        yield rule_judge(name), _Model(lambda text: "", name, "", 1)
        return
    rubrics = read_rubrics(Path(options.rubrics)) if options.rubrics else built_in_rubrics()
    model = _open_model(name, options)
    replies = Journal(out.with_name(f"{out.name}.replies.jsonl"))
    try:
        yield (
            AskingJudge(name, model.ask, identity=model.identity, rubrics=rubrics, replies=replies),
            model,
        )
    except KeyboardInterrupt:
        kept = f"{len(replies.entries)} replies are kept in {replies.path}"
        raise StoppedError(f"stopped; {kept}, and the same command goes on") from None
    finally:
        model.close()
        replies.close()


def _open_model(name: str, options: _Options) -> _Model:
    tokens = options.max_tokens
    if not name.startswith(("http://", "https://")):
        from mlx_dpo.workshop.judge.asking import local_model

        ask, digest = local_model(name, max_tokens=tokens)
        return _Model(ask, f"{digest}\0{tokens}", name, 1)
    from mlx_dpo.workshop.judge.endpoint import KEY_VARIABLE, Endpoint

    endpoint = Endpoint(
        name,
        model=options.model,
        key=os.environ.get(KEY_VARIABLE, "").strip(),
        max_tokens=tokens,
        timeout=options.timeout,
    )
    identity = f"{name}\0{options.model}\0{tokens}"
    return _Model(endpoint.ask, identity, options.model, options.concurrency, endpoint.close)


def _decide(judge: "Judge", contests: "list[Contest]", asked: _Model) -> "list[Decision]":
    from mlx_dpo.cli.screen import progress
    from mlx_dpo.workshop.judge.rules import judge_all

    with progress() as done:
        return judge_all(
            judge,
            contests,
            concurrency=asked.at_a_time,
            stop=asked.close,
            after_contest=lambda more: done("pairs", len(contests), more),
        )


def _show(summary: "Summary", out: str) -> None:
    from mlx_dpo.cli.screen import counted, share

    counts = summary.outcomes
    won = counts["won"]
    click.echo(
        f"read       {counted(summary.rows, 'prompt')}, {summary.without_contest} of them without "
        "two different answers"
    )
    click.echo(
        f"judged     {counted(sum(counts.values()), 'pair')} of answers: {won} kept, "
        f"{counts['flip']} flipped with the order, {counts['tie']} tied, {counts['abstain']} "
        f"abstained, {counts['failed']} failed"
    )
    click.echo(f"flip rate  {share(counts['flip'], won + counts['flip'])}")
    click.echo(
        f"length     the longer answer won {share(summary.longer_winners, won)}, "
        f"the shorter {share(summary.shorter_winners, won)}"
    )
    click.echo(f"wrote      {out}  ({counted(won, 'pair')})")


def _warn(summary: "Summary", judge_model: str, judge: "Judge") -> None:
    counts = summary.outcomes
    decided = counts["won"] + counts["flip"]
    if decided and counts["flip"] > decided / 3:
        click.echo(
            "warning: the verdict often follows the order and not the answers; this judge can "
            "hardly tell them apart",
            err=True,
        )
    if summary.own_answers:
        against = summary.own_wins + summary.own_losses
        click.echo(
            f"warning: {judge_model} wrote answers of {summary.own_answers} of these pairs itself, "
            "and models like their own answers best"
            + (f"; it won {summary.own_wins} of {against} against others" if against else ""),
            err=True,
        )
    if counts["failed"]:
        reason = getattr(judge, "last_failure", "")
        click.echo(
            f"warning: {counts['failed']} got no verdict ({reason}); the same command with "
            "--overwrite asks again for those alone",
            err=True,
        )
