"""`mlx_dpo audit`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.evaluate import read_pairs
from mlx_dpo.cli.footer import footer, progress
from mlx_dpo.cli.screen import VERDICT_COLOURS, counted, say, show_json
from mlx_dpo.errors import DataError, UsageError

if TYPE_CHECKING:
    from mlx_dpo.insight.audit.bias import Measures
    from mlx_dpo.insight.audit.checks import Check
    from mlx_dpo.insight.ches import Scored
    from mlx_dpo.records import Preference

_SHOWN_ROWS = 5
_BAR_WIDTH = 40
_ALIKE = 0.05  # of the pairs, as in arXiv:2410.08847


@click.command()
@click.argument("data", metavar="DATA", type=options.Name())
@options.model(
    "Count its tokens instead of words; only --ches loads more than the tokenizer.",
    required=False,
)
@options.path(
    "--eval-data",
    "Held-out pairs to look for in DATA. Without it: the split that training would make.",
)
@options.max_length
@options.drop_bad
@click.option(
    "--ches",
    "with_ches",
    is_flag=True,
    help="Name the pairs whose two answers look most alike to --model; reads its weights.",
)
@click.option("--strict", is_flag=True, help="Exit with code 3 if a check says stop.")
@options.as_json
def audit(
    data: str,
    model: str | None,
    eval_data: str | None,
    max_length: int,
    drop_bad: bool,
    with_ches: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Look at preference pairs before training on them.

    Each check ends in ok, look or stop, with the reason and the rows to look at. Nothing is
    trained and no weights are read. With --drop-bad, rows that are left out are not counted.
    --ches adds the pairs whose two answers look most alike to the model: on these, training may
    lower the chosen answer too. They are worth a look, but where it was measured they predicted
    little (docs/effects.md of the repository).

    \b
    Examples:
      mlx_dpo audit data/dpo/preferences.json
      mlx_dpo audit mine.jsonl --model checkpoints/tiny-sft --max-length 128
    """
    from mlx_dpo.insight.audit.checks import audit as run_checks

    if with_ches and model is None:
        raise UsageError("--ches takes --model: the model that is to be trained")
    footer.doing("reading and checking the pairs")
    # Rows that repeat or contradict others are for its own checks.
    preferences = read_pairs(data, drop_bad, compare=False)
    held_out = read_pairs(eval_data, drop_bad, compare=False) if eval_data else None
    measures, preferences = _measure(data, preferences, model, drop_bad)
    footer.doing("looking for copies, contradictions and leaks")
    checks = run_checks(preferences, measures, max_length=max_length, eval_preferences=held_out)
    scored = _scored(model, preferences, max_length) if with_ches and model else None
    if as_json:
        record: dict[str, Any] = {"data": data, "model": model, "pairs": len(preferences)}
        record |= {"ches": scored.by_id()} if scored else {}
        show_json(record | {"checks": list(map(asdict, checks))})
    else:
        _print_checks(data, model, preferences, measures, checks)
        if scored:
            _print_alike(data, str(model), scored)
        _print_conclusion(checks)
    stopped = _named(checks, "stop")
    if strict and stopped:
        raise DataError(f"{data}: --strict: stop at {', '.join(stopped)}")


def _measure(
    data: str, preferences: "list[Preference]", model: str | None, drop_bad: bool
) -> "tuple[Measures, list[Preference]]":
    """Lengths of the pairs, and the pairs without those that the chat template refuses."""
    from mlx_dpo.insight.audit import bias

    if model is None:
        return bias.in_words(preferences), preferences
    chat = options.chat_of(model)
    num = len(preferences)
    refused: list[int] = []
    with progress() as advance:
        try:
            measures = bias.in_tokens(
                preferences,
                chat,
                lambda more: advance("tokens", num, more),
                refused if drop_bad else None,
            )
        except DataError as error:
            raise DataError(f"{data}: {error}") from None
    if refused:
        rows = ", ".join(str(row + 1) for row in refused[:5]) + (", ..." if refused[5:] else "")
        say(f"left out: {data}: {len(refused)} x template (pairs {rows})", err=True)
    left_out = set(refused)
    return measures, [p for row, p in enumerate(preferences) if row not in left_out]


def _print_checks(
    data: str,
    model: str | None,
    preferences: "list[Preference]",
    measures: "Measures",
    checks: "list[Check]",
) -> None:
    kinds = {p.kind for p in preferences}
    unit = f"tokens of {model}" if model else "words (tokens with --model)"
    size = f"{counted(len(preferences), 'pair')}, {counted(len(kinds), 'kind')}"
    say(f"{data}: {size}; lengths in {unit}\n")
    for check in checks:
        say(
            f"{check.name:<15}  {check.verdict:<11}  {check.reason}",
            colour=VERDICT_COLOURS[check.verdict],
        )
    _print_histogram(measures)
    for check in checks:
        if check.verdict in ("look", "stop"):
            _print_rows(check, preferences)


def _print_histogram(measures: "Measures") -> None:
    from mlx_dpo.insight.audit.bias import histogram

    bars = histogram(measures.gaps)
    most = max(bar.count for bar in bars)
    say(f"\nlength of chosen minus rejected, in {measures.unit}")
    for bar in bars:
        marks = "#" * round(_BAR_WIDTH * bar.count / most)
        say(f"{bar.label:>16}  {bar.count:>6}  {marks}".rstrip())


def _print_rows(check: "Check", preferences: "list[Preference]") -> None:
    if not check.findings:
        return
    say(f"\n{check.name}: rows to look at")
    for finding in check.findings[:_SHOWN_ROWS]:
        row = preferences[finding.rows[0] - 1]
        rows = ", ".join(map(str, finding.rows[:6])) + (" ..." if len(finding.rows) > 6 else "")
        question = " ".join(row.question.split())
        shown = question if len(question) <= 60 else question[:59] + "\u2026"
        name = "" if row.id == str(finding.rows[0]) else f" (id {row.id})"
        say(f"  row {rows}{name}: {finding.note}: {shown}")
    if len(check.findings) > _SHOWN_ROWS:
        say(f"  and {len(check.findings) - _SHOWN_ROWS} more: --json")


def _scored(model: str, preferences: "list[Preference]", max_length: int) -> "Scored":
    from mlx_dpo.insight.ches import score_file

    options.opening(model)
    with progress() as advance:
        return score_file(model, preferences, max_length=max_length, progress=advance)


def _print_alike(data: str, model: str, scored: "Scored") -> None:
    say(f"\npairs whose answers look most alike to {model}: training may lower the chosen one too")
    for row in scored.most_alike(_ALIKE)[:_SHOWN_ROWS]:
        question = " ".join(scored.preferences[row].question.split())
        shown = question if len(question) <= 60 else question[:59] + "\u2026"
        say(f"  id {scored.preferences[row].id}: CHES {scored.scores[row]:.3g}: {shown}")
    command = f"mlx_dpo data filter {data} --drop-ches {_ALIKE:.0%} --model {model}"
    say(f"  left out by: {command} --out clearer.jsonl")


def _print_conclusion(checks: "list[Check]") -> None:
    stopped, looks = _named(checks, "stop"), _named(checks, "look")
    say("")
    if stopped:
        text = f"stop: fix {', '.join(stopped)} before training, unless you mean it so."
        say(text, colour="red", bold=True)
    if looks:
        say(f"look: {', '.join(looks)}.", colour="yellow", bold=True)
    if not stopped and not looks:
        say("ok: no check speaks against training on these pairs.", colour="green", bold=True)


def _named(checks: "list[Check]", verdict: str) -> list[str]:
    return [check.name for check in checks if check.verdict == verdict]
