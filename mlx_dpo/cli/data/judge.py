"""`mlx_dpo data judge`: a rule or a model decides which answer is better."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_dpo.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_dpo.workshop.judging.summary import Summary


@click.command(short_help="Let a rule or a model decide between answers.")
@click.argument("candidates", metavar="CANDIDATES", type=click.Path())
@click.option(
    "--judge",
    "judge_name",
    required=True,
    metavar="JUDGE",
    help="rule:shorter, rule:longer, rule:regex:PATTERN or rule:exact:FILE.",
)
@click.option(
    "--out", default="preferences.jsonl", show_default=True, metavar="FILE", help="Where pairs go."
)
@click.option("--overwrite", is_flag=True, help="Replace --out where it is there.")
def judge(candidates: str, judge_name: str, out: str, overwrite: bool) -> None:
    """Decide between the answers of a file of candidates, and write the pairs.

    Each two answers are shown in both orders. Only where the same answer wins both times do they
    become a pair; flips, ties and abstentions are counted and dropped. Of more than two answers
    to a prompt, every two meet.

    \b
    Rules
      rule:shorter, rule:longer   by characters
      rule:regex:PATTERN          an answer in which the pattern is found
      rule:exact:FILE             an answer that equals the right one; FILE has a JSON object a
                                  line, {"prompt": ..., "answer": ...}

    \b
    Example:
      mlx_dpo data judge candidates.jsonl --judge rule:shorter --out preferences.jsonl
    """
    from mlx_dpo.cli.figures import progress
    from mlx_dpo.files import check_writable, write_file
    from mlx_dpo.preferences.writer import preference_line
    from mlx_dpo.workshop.candidates import load_candidates
    from mlx_dpo.workshop.contests import contests_of
    from mlx_dpo.workshop.judging.rules import rule_judge
    from mlx_dpo.workshop.judging.session import judge_all
    from mlx_dpo.workshop.judging.summary import summarise

    path = Path(out)
    if path.exists() and not overwrite:
        raise UsageError(f"{out}: is there already; --overwrite replaces it")
    check_writable(path)
    rows = load_candidates(candidates)
    found = [contests_of(row) for row in rows]
    contests = [contest for some in found for contest in some]
    if not contests:
        raise DataError(f"{candidates}: no prompt has two different answers to choose between")
    chosen_judge = rule_judge(judge_name)
    with progress() as done:
        decisions = judge_all(
            chosen_judge, contests, after_contest=lambda more: done("pairs", len(contests), more)
        )
    won = [decision.preference for decision in decisions if decision.outcome == "won"]
    write_file(path, "".join(map(preference_line, won)))
    _show(summarise(decisions, rows=len(rows), without_contest=found.count([])), out)


def _show(summary: "Summary", out: str) -> None:
    from mlx_dpo.cli.figures import share
    from mlx_dpo.cli.terminal import counted

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
