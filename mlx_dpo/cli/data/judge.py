"""`mlx_dpo data judge`: a rule or a model decides which answer is better."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer, progress
from mlx_dpo.cli.screen import counted, say, share, show_json, show_ways_on
from mlx_dpo.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_dpo.workshop.judge.verdicts import Judge, JudgeSummary


@click.command(short_help="Let a rule or a model decide between answers.")
@click.argument("candidates", metavar="CANDIDATES", type=options.Name())
@click.option(
    "--judge",
    "judge_name",
    required=True,
    metavar="JUDGE",
    help="rule:NAME, a model's folder or hub id, a trained adapter, or http://HOST/v1.",
)
@options.out("The file of pairs to write.", default="preferences.jsonl")
@options.overwrite
@options.adapter("An adapter, mlx-lm's or PEFT's, to put onto the model that judges.")
@click.option("--model", default="", metavar="NAME", help="The name of the model at the endpoint.")
@options.path(
    "--rubrics",
    "What makes an answer better: a file KIND.txt for each kind, created if missing.",
    metavar="FOLDER",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="How many pairs to send to an endpoint at once.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for a reply of an endpoint.",
)
@options.max_tokens(16, "Longest reply of a model. Give more to one that thinks first.")
@options.as_json
@options.keeps_awake
def judge(
    candidates: str,
    judge_name: str,
    out: str,
    overwrite: bool,
    adapter: str | None,
    model: str,
    rubrics: str | None,
    concurrency: int,
    timeout: float,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Decide between the answers of a file of candidates, and write the pairs.

    Each two answers are shown in both orders. Only where the same answer wins both times do they
    become a pair; flips, ties and abstentions are counted and dropped. Of more than two answers
    to a prompt, every two are compared.

    A model's replies are kept in OUT.replies.jsonl: the same command continues after a stop. A key
    for an endpoint is read from the environment variable MLX_DPO_JUDGE_KEY.

    \b
    Rules
      rule:shorter, rule:longer   by characters
      rule:regex:PATTERN          an answer in which the pattern is found
      rule:exact:FILE             an answer that equals FILE's: JSON lines of prompt and answer

    \b
    Examples:
      mlx_dpo data judge candidates.jsonl --judge rule:shorter
      mlx_dpo data judge candidates.jsonl --judge path/to/instruct-model
      mlx_dpo data judge candidates.jsonl --judge http://127.0.0.1:8080/v1
    """
    from mlx_dpo.files import check_writable, write_file
    from mlx_dpo.preferences.reader import preference_line
    from mlx_dpo.workshop.candidates import contests_of, load_candidates, origins_of
    from mlx_dpo.workshop.judge.judges import open_judge
    from mlx_dpo.workshop.judge.verdicts import judge_all, summarize

    path = Path(out)
    if path.exists() and not overwrite:
        raise UsageError(f"{out}: already exists; --overwrite replaces it")
    if path.exists() and path.samefile(candidates):
        raise UsageError(f"{out}: holds the candidates; --out takes another file")
    check_writable(path)
    rows = load_candidates(candidates)
    by_row = [contests_of(row) for row in rows]
    contests = [contest for of_row in by_row for contest in of_row]
    if not contests:
        decided = all(row.is_pair for row in rows)
        raise DataError(
            f"{candidates}: all rows are finished pairs (`chosen`, `rejected`)"
            if decided
            else f"{candidates}: no prompt has two different answers to choose between"
        )
    footer.doing("reading candidates and judge")
    with (
        open_judge(
            judge_name,
            path,
            adapter=adapter,
            model=model,
            rubrics=Path(rubrics) if rubrics else None,
            concurrency=concurrency,
            timeout=timeout,
            max_tokens=max_tokens,
        ) as chosen,
        progress() as done,
    ):
        decisions = judge_all(
            chosen, contests, after_contest=lambda more: done("pairs", len(contests), more)
        )
    won = [decision.preference for decision in decisions if decision.outcome == "won"]
    say(
        f"read       {counted(len(rows), 'prompt')}, {by_row.count([])} of them without "
        "two different answers"
    )
    summary = summarize(decisions, chosen.model)
    _show(summary)
    _warn(summary, chosen)
    if not won and path.exists():
        raise DataError(f"{out}: left as it was: no pair has a winner")
    write_file(path, "".join(map(preference_line, won)))
    say(f"wrote      {out}  ({counted(len(won), 'pair')})")
    if won:
        origins = [origin for origin in origins_of(rows) if origin.model]
        show_ways_on(path, *origins[0] if len(origins) == 1 else ())
    if as_json:
        written = {"file": out, "pairs": len(won)}
        show_json({"prompts": len(rows), **asdict(summary), "written": [written]})


def _show(summary: "JudgeSummary") -> None:
    counts = summary.outcomes
    won = counts["won"]
    say(
        f"judged     {counted(sum(counts.values()), 'pair')} of answers: {won} kept, "
        f"{counts['flip']} flipped with the order, {counts['tie']} tied, {counts['abstain']} "
        f"abstained, {counts['failed']} failed"
    )
    say(f"flip rate  {share(counts['flip'], won + counts['flip'])}")
    say(
        f"length     the longer answer won {share(summary.longer_winners, won)}, "
        f"the shorter {share(summary.shorter_winners, won)}"
    )


def _warn(summary: "JudgeSummary", judge: "Judge") -> None:
    counts = summary.outcomes
    decided = counts["won"] + counts["flip"]
    if decided and counts["flip"] > decided / 3:
        say(
            "warning: the verdict often follows the order and not the answers; this judge can "
            "hardly tell them apart",
            err=True,
        )
    if summary.own_answers:
        against = summary.own_wins + summary.own_losses
        say(
            f"warning: {judge.model} wrote answers of {summary.own_answers} of these pairs itself, "
            "and models like their own answers best"
            + (f"; it won {summary.own_wins} of {against} against others" if against else ""),
            err=True,
        )
    if counts["failed"]:
        say(
            f"warning: {counts['failed']} got no verdict ({judge.last_failure}); the same command "
            "with --overwrite asks again for those alone",
            err=True,
        )
