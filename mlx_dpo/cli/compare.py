"""`mlx_dpo compare`."""

import random
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer, printable, progress
from mlx_dpo.cli.screen import (
    LENGTH_READING,
    say,
    share,
    share_of,
    show_json,
    table,
    terminal_width,
)
from mlx_dpo.errors import UsageError

if TYPE_CHECKING:
    from mlx_dpo.insight.comparison import Compared, ComparisonPrompt, Tally

_TWO_COLUMNS = 80  # of the terminal, from which answers stand side by side


@click.command()
@click.argument("a", metavar="A", type=options.Name())
@click.argument("b", metavar="B", type=options.Name())
@options.adapter("An adapter, mlx-lm's or PEFT's, to put onto B.")
@options.path(
    "--prompts",
    "One prompt per line, or JSON lines with prompt and kind. Default: 18 prompts, seen in the "
    "embedded pairs, unseen, and off-topic.",
    type=options.Name(path_type=Path),
)
@options.max_tokens(64)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=0.7,
    show_default=True,
    help="Temperature of the sampled answers.",
)
@options.seed("Random seed of the sampling, the same for both.")
@click.option(
    "--blind", is_flag=True, help="Judge the greedy answers first, without knowing whose they are."
)
@options.as_json
@options.keeps_awake
def compare(
    a: str,
    b: str,
    adapter: str | None,
    prompts: Path | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    blind: bool,
    as_json: bool,
) -> None:
    """Show the answers of models A and B side by side, greedy and sampled with one seed.

    Then their mean length and repetition, which reveal a collapse. The two models are in memory one
    after the other. Each may be a trained adapter, by its folder.

    \b
    Examples:
      mlx_dpo compare checkpoints/tiny-sft checkpoints/tiny-sft-dpo
      mlx_dpo compare checkpoints/tiny-sft checkpoints/tiny-sft-dpo --blind
    """
    if blind and not sys.stdin.isatty():
        raise UsageError("--blind asks a person, and stdin is not a terminal")
    if blind and footer.is_quiet:
        raise UsageError("--blind asks on the screen; leave --quiet out")
    from mlx_dpo.insight import comparison
    from mlx_dpo.insight.scoring import Named

    models = Named(a), Named(b, adapter)
    questions = comparison.read_questions(prompts)
    options.opening(a, b, adapter)
    with progress() as advance:
        compared = comparison.compare(
            models,
            questions,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            after_questions=lambda more: advance("answers", 2 * len(questions), more),
        )
    # Unseeded: somebody who judges twice should not know the sides from the first time.
    tally = None
    if blind:
        differ = sum(pair.greedy[0].text != pair.greedy[1].text for pair in compared)
        tally = comparison.judge_blind(compared, _Asking(differ), random.Random())
    if as_json:
        record = {"a": a, "b": str(models[1]), "temperature": temperature, "seed": seed}
        show_json(record | _as_record(compared, tally))
        return
    say(f"A  {a}\nB  {models[1]}\n")
    _print_answers(compared)
    _print_habits(compared)
    if tally is not None:
        _print_tally(tally)


class _Asking:
    """Asks a person which answer is better, and counts the questions."""

    def __init__(self, total: int) -> None:
        self._number, self._total, self._keys = 0, total, _keys()

    def __call__(self, question: "ComparisonPrompt", first: str, second: str) -> str:
        self._number += 1
        say(f"\n{self._number} of {self._total}  {question.prompt}", err=True, bold=True)
        say(f"  1  {first}\n  2  {second}", err=True)
        say("better: 1 or 2, t for a tie, s to skip, q to stop", err=True)
        key = next(key for key in self._keys if key in ("1", "2", "t", "s", "q"))
        say(f"  {key}", err=True)
        return key


def _keys() -> Iterator[str]:
    """Keys that are typed, without end; those typed ahead come in one read."""
    while True:
        try:
            read = click.getchar().lower()
        except (KeyboardInterrupt, EOFError):
            read = "q"
        if not read.startswith("\x1b"):  # an arrow or the like
            yield from read


def _print_answers(compared: "list[Compared]") -> None:
    for pair in compared:
        kind = f"[{pair.question.kind}] " if pair.question.kind else ""
        say(f"{kind}{pair.question.prompt}")
        for name, (left, right) in (("greedy", pair.greedy), ("sampled", pair.sampled)):
            say(_side_by_side(name, printable(left.text), printable(right.text)))
        say("")


def _side_by_side(name: str, left: str, right: str) -> str:
    """Two texts in columns of half the screen; one below the other where that is narrow or none."""
    full = terminal_width()
    if full is None or full < _TWO_COLUMNS:
        return f"  {name:<8}A:  {left or '(nothing)'}\n  {'':<8}B:  {right or '(nothing)'}"
    width = (min(full, 100) - 18) // 2
    columns = [
        textwrap.wrap(text, width, break_on_hyphens=False) or ["(nothing)"]
        for text in (left, right)
    ]
    lines = []
    for number, (a, b) in enumerate(zip_longest(*columns, fillvalue="")):
        label, first, second = (name, "A:", "B:") if number == 0 else ("", "", "")
        lines.append(f"  {label:<8}{first:<2} {a:<{width}}  {second:<2} {b}".rstrip())
    return "\n".join(lines)


def _print_habits(compared: "list[Compared]") -> None:
    from mlx_dpo.insight.comparison import habits, signs

    rows = [["prompts", "model", "answers", "tokens", "repetition", "ended", "distinct"]]
    for kind, members in _groups(compared):
        for side, name in enumerate("AB"):
            habit = habits(members, side)
            rows.append(
                [
                    printable(kind) if side == 0 else "",
                    name,
                    str(habit.num_answers),
                    f"{habit.mean_length:.1f}",
                    f"{habit.repetition:.3f}",
                    f"{habit.num_closed}/{habit.num_answers}",
                    f"{habit.num_different}/{len(members)}",
                ]
            )
    say(table(rows, left=2, spare=(("answers",), ("tokens",))))
    same = sum(pair.greedy[0].text == pair.greedy[1].text for pair in compared)
    say(
        "repetition: share of word triples that came before in the same answer; ended: before "
        "--max-tokens; distinct: greedy answers that differ from each other.\n"
        f"The greedy answers are the same in {same} of {len(compared)} prompts."
    )
    for sign in signs(compared):
        say(f"warning: B beside A: {sign}")


def _groups(compared: "list[Compared]") -> "list[tuple[str, list[Compared]]]":
    """The prompts of each kind, and of all kinds where there are several."""
    groups: dict[str, list[Compared]] = {}
    for pair in compared:
        groups.setdefault(pair.question.kind or "(no kind)", []).append(pair)
    return [*groups.items(), ("all", compared)] if len(groups) > 1 else [("all", compared)]


def _print_tally(tally: "Tally") -> None:
    low, high = tally.interval
    say(
        f"\nblind: B better in {tally.b_wins}, A better in {tally.a_wins}, ties {tally.ties}; "
        f"skipped {tally.skipped}, same answer {tally.same}\n"
        f"B wins {tally.b_share:.2f} ({low:.2f}-{high:.2f}) of {tally.judged} judged, a tie being "
        "half a win."
    )
    if not tally.judged:
        return
    rows = [["by length", "judged", "B wins"]]
    rows += [
        [each.name, str(each.judged), share(each.b_wins, each.judged)] for each in tally.lengths
    ]
    if (controlled := tally.length_controlled) is not None:
        rows.append(["length-controlled", str(controlled.num_pairs), share_of(controlled)])
    say(f"\n{table(rows)}\n{LENGTH_READING}")


def _as_record(compared: "list[Compared]", tally: "Tally | None") -> dict[str, Any]:
    from mlx_dpo.insight.comparison import habits, signs

    groups = [
        {"kind": kind, "a": asdict(habits(own, 0)), "b": asdict(habits(own, 1))}
        for kind, own in _groups(compared)
    ]
    record: dict[str, Any] = {
        "prompts": [asdict(pair) for pair in compared],
        "habits": groups,
        "warnings": signs(compared),
    }
    if tally is not None:
        controlled = tally.length_controlled
        record["blind"] = {
            **asdict(tally),
            "b_share": tally.b_share,
            "interval": tally.interval,
            "length_controlled": None if controlled is None else asdict(controlled),
        }
    return record
