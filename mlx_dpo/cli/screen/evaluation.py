"""What `mlx_dpo eval` found, as text and as JSON."""

from dataclasses import asdict
from typing import Any

import click

from mlx_dpo.cli.screen.figures import share, table
from mlx_dpo.cli.screen.terminal import counted, printable
from mlx_dpo.insight.evaluation import wilson_interval
from mlx_dpo.insight.judging.assessment import Assessment

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
