"""`mlx_dpo compare`."""

import json
import random
import shutil
import sys
import textwrap
from dataclasses import asdict
from itertools import groupby, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli.options import Name
from mlx_dpo.errors import UsageError

if TYPE_CHECKING:
    from mlx_dpo.insight.comparison import Compared, ComparisonPrompt, Tally


@click.command()
@click.argument("a", metavar="A", type=Name())
@click.argument("b", metavar="B", type=Name())
@click.option(
    "--prompts",
    type=Name(path_type=Path),
    metavar="FILE",
    help="A prompt a line, or JSON lines with prompt and kind. Default: 18 prompts, seen in the "
    "embedded pairs, unseen, and off-topic.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Longest answer.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=0.7,
    show_default=True,
    help="Of the sampled answers.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decides what is sampled, the same for both.",
)
@click.option(
    "--blind", is_flag=True, help="Judge the greedy answers first, without knowing whose they are."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def compare(
    a: str,
    b: str,
    prompts: Path | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    blind: bool,
    as_json: bool,
) -> None:
    """Show the answers of models A and B side by side, greedy and sampled with one seed.

    Mean length and repetition stand beneath, so that a collapse shows. The two models are in
    memory one after the other.

    \b
    Examples:
      mlx_dpo compare checkpoints/tiny-sft checkpoints/tiny-sft-dpo
      mlx_dpo compare checkpoints/tiny-sft checkpoints/tiny-sft-dpo --blind
    """
    if blind and not sys.stdin.isatty():
        raise UsageError("--blind asks a person, and there is no terminal to ask at")
    from mlx_dpo.cli.screen import progress
    from mlx_dpo.insight import comparison

    questions = comparison.read_questions(prompts)
    with progress() as done:
        compared = comparison.compare(
            (a, b),
            questions,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            after_questions=lambda more: done("answers", 2 * len(questions), more),
        )
    # Unseeded: the sides of a second look should not be known from the first.
    tally = comparison.judge_blind(compared, _ask, random.Random()) if blind else None
    if as_json:
        record = {"a": a, "b": b, "temperature": temperature, "seed": seed}
        click.echo(json.dumps(record | _as_record(compared, tally), indent=2))
        return
    click.echo(f"A  {a}\nB  {b}\n")
    _print_answers(compared)
    _print_habits(compared)
    if tally is not None:
        _print_tally(tally)


def _ask(question: "ComparisonPrompt", first: str, second: str) -> str:
    from mlx_dpo.cli.screen import printable

    for text in ("", question.prompt, f"  1  {first}", f"  2  {second}"):
        click.echo(printable(text), err=True)
    click.echo("better: 1 or 2, t for a tie, s to skip, q to stop ", nl=False, err=True)
    while True:
        try:
            key = click.getchar().lower()
        except (KeyboardInterrupt, EOFError):
            key = "q"
        if key in ("1", "2", "t", "s", "q"):
            click.echo(key, err=True)
            return key


def _print_answers(compared: "list[Compared]") -> None:
    from mlx_dpo.cli.screen import printable

    for one in compared:
        kind = f"[{one.question.kind}] " if one.question.kind else ""
        click.echo(printable(f"{kind}{one.question.prompt}"))
        for name, (left, right) in (("greedy", one.greedy), ("sampled", one.sampled)):
            click.echo(_side_by_side(name, printable(left.text), printable(right.text)))
        click.echo("")


def _side_by_side(name: str, left: str, right: str) -> str:
    """Two texts in columns of half the screen."""
    width = (min(120, shutil.get_terminal_size((100, 0)).columns) - 18) // 2
    columns = [textwrap.wrap(text, width) or ["(nothing)"] for text in (left, right)]
    lines = []
    for number, (a, b) in enumerate(zip_longest(*columns, fillvalue="")):
        label, one, other = (name, "A:", "B:") if number == 0 else ("", "", "")
        lines.append(f"  {label:<8}{one:<2} {a:<{width}}  {other:<2} {b}".rstrip())
    return "\n".join(lines)


def _print_habits(compared: "list[Compared]") -> None:
    from mlx_dpo.cli.screen import printable, table
    from mlx_dpo.insight.comparison import habits, signs

    rows = [["prompts", "model", "answers", "tokens", "repetition", "ended", "different greedy"]]
    for kind, members in _groups(compared):
        for side, name in enumerate("AB"):
            found = habits(members, side)
            rows.append(
                [
                    printable(kind) if side == 0 else "",
                    name,
                    str(found.num_answers),
                    f"{found.mean_length:.1f}",
                    f"{found.repetition:.3f}",
                    f"{found.num_closed}/{found.num_answers}",
                    f"{found.num_different}/{len(members)}",
                ]
            )
    click.echo(table(rows, left=2))
    same = sum(one.greedy[0].text == one.greedy[1].text for one in compared)
    click.echo(
        "repetition: share of word triples that came before in the same answer; ended: before "
        f"--max-tokens.\nThe greedy answers are the same in {same} of {len(compared)} prompts."
    )
    for sign in signs(compared):
        click.echo(f"warning: B beside A: {sign}")


def _groups(compared: "list[Compared]") -> "list[tuple[str, list[Compared]]]":
    """The prompts of each kind, and all of them where there is more than one kind."""
    by_kind = sorted(compared, key=lambda one: one.question.kind)
    groups = {kind: list(own) for kind, own in groupby(by_kind, lambda one: one.question.kind)}
    order = dict.fromkeys(one.question.kind for one in compared)
    named = [(kind or "(no kind)", groups[kind]) for kind in order]
    return [*named, ("all", compared)] if len(named) > 1 else [("all", compared)]


def _print_tally(tally: "Tally") -> None:
    low, high = tally.interval
    click.echo(
        f"\nblind: B better in {tally.b_wins}, A better in {tally.a_wins}, ties {tally.ties}; "
        f"skipped {tally.skipped}, same answer {tally.same}\n"
        f"B wins {tally.b_share:.2f} ({low:.2f}-{high:.2f}) of {tally.judged} judged, a tie being "
        "half a win."
    )


def _as_record(compared: "list[Compared]", tally: "Tally | None") -> dict[str, Any]:
    from mlx_dpo.insight.comparison import habits, signs

    groups = [
        {"kind": kind, "a": asdict(habits(own, 0)), "b": asdict(habits(own, 1))}
        for kind, own in _groups(compared)
    ]
    record: dict[str, Any] = {
        "prompts": [asdict(one) for one in compared],
        "habits": groups,
        "warnings": signs(compared),
    }
    if tally is not None:
        record["blind"] = {**asdict(tally), "b_share": tally.b_share, "interval": tally.interval}
    return record
