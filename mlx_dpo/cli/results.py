"""What `mlx_dpo eval` found, as text and as JSON."""

import shlex
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_dpo.cli.screen import counted, gigabytes, printable, program, share, table
from mlx_dpo.insight.evaluation import Assessment, GroupScore, score_groups, wilson_interval
from mlx_dpo.runs.run import RunResult

_KINDS_READING = """\
reward acc: chosen reward > rejected reward; 0 before training by construction.
log-prob acc: log p(chosen) > log p(rejected) under the model itself, before -> after."""


def as_record(names: dict[str, Any], which: str, found: Assessment) -> dict[str, Any]:
    """An assessment as plain data.

    Args:
        names: Model, reference, data and settings.
        which: Which pairs were judged.
        found: What was found.
    """
    groups = []
    for group in found.groups:
        wins = round(group.reward_accuracy * group.num_pairs)
        interval = wilson_interval(wins, group.num_pairs)
        groups.append({**asdict(group), "reward_accuracy_interval": interval})
    return {
        **names,
        "pairs": which,
        "read": found.pairs.read,
        "dropped": found.pairs.dropped,
        "cut": found.pairs.num_cut,
        "groups": groups,
        "lengths": [asdict(group) for group in found.lengths],
        "calibration": asdict(found.calibration),
        "drift": asdict(found.drift) if found.drift else None,
        "warnings": found.drift.signs if found.drift else [],
    }


def print_assessment(names: dict[str, Any], which: str, found: Assessment) -> None:
    """Print an assessment; arguments as for `as_record`."""
    num = len(found.pairs.examples)
    dropped = f"; {found.pairs.read - num} dropped" if found.pairs.read > num else ""
    cut = f"; {found.pairs.num_cut} cut" if found.pairs.num_cut else ""
    click.echo(f"policy     {names['model']}\nreference  {names['reference']}")
    click.echo(f"data       {names['data']}: {counted(num, 'pair')}, {which}{dropped}{cut}")
    click.echo(f"settings   beta {names['beta']:g}, max-length {names['max_length']}")
    click.echo(f"loss       {found.groups[0].loss:.4f} (untrained: log 2 = 0.6931)\n")
    _print_kinds(found)
    _print_lengths(found)
    _print_calibration(found)
    _print_drift(found)


def _print_kinds(found: Assessment) -> None:
    rows = [["kind", "pairs", "reward acc", "log-prob acc", "margin", "chosen", "rejected"]]
    for group in found.groups:
        rows.append(
            [
                printable(group.name) or "(none)",
                str(group.num_pairs),
                share(round(group.reward_accuracy * group.num_pairs), group.num_pairs),
                f"{group.logprob_accuracy_before:.2f} -> {group.logprob_accuracy_after:.2f}",
                f"{group.margin:+.3f}",
                f"{group.chosen_reward:+.3f}",
                f"{group.rejected_reward:+.3f}",
            ]
        )
    click.echo(f"{table(rows)}\n{_KINDS_READING}\n")


def _print_lengths(found: Assessment) -> None:
    rows = [["by length", "pairs", "reward acc", "log-prob acc"]]
    for group in found.lengths:
        if num := group.num_pairs:
            before, after = group.logprob_wins_before / num, group.logprob_wins_after / num
            accuracy = f"{before:.2f} -> {after:.2f}"
        else:
            accuracy = "-"
        rows.append([group.name, str(num), share(group.reward_wins, num), accuracy])
    click.echo(table(rows))
    click.echo(
        "length-matched: within 10 % of the longer answer's tokens, or one token. A policy that "
        "learned\nlength is right in the first row and wrong in the last.\n"
    )


def _print_calibration(found: Assessment) -> None:
    rows = [["calibration", "pairs", "predicted", "right"]]
    for one in found.calibration.bins:
        rows.append(
            [
                f"{one.low:.3f}-{one.high:.3f}",
                str(one.num_pairs),
                f"{one.confidence:.3f}",
                share(one.right, one.num_pairs),
            ]
        )
    click.echo(table(rows))
    click.echo(
        f"ECE {found.calibration.ece:.3f}; a perfectly calibrated model would show "
        f"{found.calibration.ece_by_chance:.3f} on so many pairs.\n"
        "predicted: sigmoid(|margin|), how sure the policy is of its own pick; right: the share "
        "of\npicks that are the chosen answer.\n"
    )


def _print_drift(found: Assessment) -> None:
    drift = found.drift
    if drift is None:
        click.echo("drift      not measured (--num-prompts 0)")
        return
    cut = drift.policy_cut + drift.reference_cut
    limit = f"; cut at --max-tokens: {drift.policy_cut} and {drift.reference_cut}" if cut else ""
    click.echo(
        f"drift      KL(policy || reference) {drift.kl_per_token:.4f} nats a token, "
        f"{drift.kl_per_answer:.3f} an answer\n"
        f"length     policy {drift.policy_length:.1f}, reference {drift.reference_length:.1f} "
        f"tokens an answer{limit}\n"
        f"repetition policy {drift.policy_repetition:.3f}, reference "
        f"{drift.reference_repetition:.3f} of word triples came before in the answer\n"
        f"over {drift.num_prompts} prompts, answers sampled at temperature 1; KL on the policy's "
        f"own {drift.num_tokens} tokens."
    )
    for sign in drift.signs:
        click.echo(f"warning: {sign}")


# --- What a finished training run shows: scores before and after, answers,
# what to type next.


def show_result(result: RunResult) -> None:
    """Print what a finished run changed, where the checkpoint lies and what to type next."""
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console.width = 120
    job = result.job
    console.print()
    if result.policy.size:
        kinds = [kind or "-" for kind in job.held_out.kinds]
        groups = score_groups(result.policy, result.reference, kinds, beta=job.config.beta)
        console.print(_score_table(groups))
        console.print(_reading(groups), markup=False)
    console.print()
    for shown in result.answers:
        console.print(f"  {printable(shown.prompt)}", style="bold", markup=False)
        console.print(f"    SFT  {printable(shown.sft)}", markup=False)
        console.print(f"    DPO  {printable(shown.dpo)}\n", markup=False)
    if result.totals:
        console.print(_where_time_went(result), markup=False)
    console.print(
        f"{result.totals['seconds']:.1f} s of training, "
        f"peak memory {gigabytes(result.peak_bytes)}. "
        f"Metrics are in {result.folder}.",
        markup=False,
    )
    console.print(f"The DPO checkpoint is {job.out}. Next:", markup=False)
    question = printable(result.answers[0].prompt) if result.answers else "Hello"
    command = [program(), "generate", "--model", str(job.out), "--prompt", question]
    console.print(f"  {shlex.join(command)}", markup=False)


def _where_time_went(result: RunResult) -> str:
    """Share of the steps' time by phase, and what padding cost and sharing prompts saved."""
    totals = result.totals
    shares = [
        f"{name} {totals[key] / totals['seconds']:.0%}"
        for name, key in (
            ("forward and backward", "forward_backward_seconds"),
            ("update", "update_seconds"),
            ("reference", "reference_seconds"),
            ("data", "data_seconds"),
        )
    ]
    return (
        f"{totals['pairs'] / totals['seconds']:.1f} pairs/s, "
        f"{totals['real_tokens'] / totals['seconds']:.0f} tokens/s: {', '.join(shares)}.\n"
        f"Tokens computed: {totals['computed_tokens'] / totals['real_tokens']:.2f} x the real ones "
        f"(padding); reading each prompt for itself would have been "
        f"{totals['unshared_tokens'] / totals['real_tokens']:.2f} x."
    )


def _score_table(groups: list[GroupScore]) -> Table:
    table = Table(
        title="Held-out pairs, before -> after",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("kind", no_wrap=True)
    for name in ("pairs", "reward acc", "log-prob acc", "margin", "chosen", "rejected"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ranking")
    for group in groups:
        table.add_row(
            Text(printable(group.name)),
            str(group.num_pairs),
            f"{group.reward_accuracy:.2f}",
            f"{group.logprob_accuracy_before:.2f} -> {group.logprob_accuracy_after:.2f}",
            f"{group.margin:+.3f}",
            f"{group.chosen_reward:+.3f}",
            f"{group.rejected_reward:+.3f}",
            group.verdict,
            style="bold" if group.name == "all" else None,
        )
    return table


def _reading(groups: list[GroupScore]) -> str:
    lines = [
        "",
        "reward acc: chosen reward > rejected reward; 0 before training by construction.",
        "log-prob acc: log p(chosen) > log p(rejected) under the model itself.",
    ]
    for verdict in ("better", "worse"):
        names = [g.name for g in groups[1:] if g.verdict == verdict]
        if names:
            lines.append(f"ranks {verdict} than before: {', '.join(names)}.")
    if groups[0].chosen_reward < -0.05 and groups[0].margin > 0:
        lines.append(
            "The chosen reward is negative: chosen answers lost probability too, only less than "
            "rejected ones. That is common; the margin is what DPO trains. If answers get worse, "
            "lower --learning-rate or raise --beta."
        )
    return "\n".join(lines)
