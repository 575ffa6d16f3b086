"""What `mlx_dpo train` and `mlx_dpo eval` show in the end, and eval's result as JSON."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlx_dpo.cli.displacement import displacement_record, print_fallen, show_displacement
from mlx_dpo.cli.footer import printable
from mlx_dpo.cli.screen import LENGTH_READING, counted, program, say, share, share_of, table
from mlx_dpo.convert.sources import find
from mlx_dpo.insight.calibration import Reliability
from mlx_dpo.insight.drift import Drift
from mlx_dpo.insight.evaluation import Assessment
from mlx_dpo.models.packed import packed_bits
from mlx_dpo.preferences.scores import (
    GroupScore,
    LengthControlled,
    LengthGroup,
    is_taught,
    score_groups,
    wilson_interval,
)
from mlx_dpo.runs.best import Kept
from mlx_dpo.runs.defaults import LORA
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.plan import gigabytes
from mlx_dpo.runs.run import RunResult
from mlx_dpo.runs.verdict import BETTER, COLLAPSED, LOOPING, WORSE, Verdict

_COLUMNS = ["kind", "pairs", "right", "likelier", "margin", "chosen", "rejected"]
_SPARE = (("chosen", "rejected"), ("likelier",), ("margin",))  # left out where it is narrow
_COLOURS = {BETTER: "green", WORSE: "red", COLLAPSED: "red", LOOPING: "red"}
_UNTAUGHT = "not trained on"
_MARK_COLOURS = {BETTER: "green", WORSE: "red"}
_READING = """\
right: pairs whose chosen answer gained more than the rejected one (the reward accuracy), with its \
95 % interval; by chance 0.50.
likelier: pairs whose chosen answer is the likelier one under the model itself (the log-prob \
accuracy), before -> after."""


def record_of_run(result: RunResult) -> dict[str, Any]:
    """What a finished run changed, as plain data."""
    groups, apart = _measured(result)
    return {
        "run": str(result.folder),
        "out": str(result.job.out),
        "verdict": asdict(result.verdict),
        "kept": asdict(result.kept),
        "groups": _group_records(groups),
        "not_trained_on": _group_records(apart),
        "displacement": displacement_record(result.displacement),
        "answers": [asdict(answer) for answer in result.answers],
        "totals": dict(result.totals),
        "peak_bytes": result.peak_bytes,
    }


def show_result(result: RunResult, *, verbose: bool = False) -> None:
    """Print what a finished run changed, where the checkpoint lies and what to type next."""
    job = result.job
    say()
    if result.policy.size:
        _print_scores(*_measured(result))
    if result.displacement is not None:
        show_displacement(result.displacement, job.config, job.data.files[0])
    say()
    for shown in result.answers:
        say(f"  {shown.prompt}  ({shown.mark})", colour=_MARK_COLOURS.get(shown.mark), bold=True)
        say(f"    SFT  {shown.sft}\n    DPO  {shown.dpo}\n")
    if result.totals:
        if verbose:
            _print_time(result.totals)
        say(
            f"{result.totals['seconds']:.1f} s of training, "
            f"peak memory {gigabytes(result.peak_bytes)}. Metrics are in {result.folder}."
        )
    _print_kept(result.kept, result.folder)
    _print_verdict(result.verdict)
    if result.verdict.outcome in (COLLAPSED, LOOPING):
        say(f"The resulting model is kept in {job.out}.")
    else:
        _print_next(job, result.answers[0].prompt if result.answers else "Hello")


def _print_kept(kept: Kept, folder: Path) -> None:
    """Which step was written, where held-out pairs selected it, and what that means."""
    if not kept.is_selected:
        return
    last = f"; the last step stays in {folder / f'step-{kept.made:06d}'}"
    say(
        f"Kept step {kept.step} of {kept.made}, with the best held-out {kept.by} "
        f"({kept.value:.4f}){last if kept.step < kept.made else ''}.\n"
        "The step was selected by these held-out pairs, so their figures are a little too good."
    )


def _print_next(job: Job, question: str) -> None:
    """What a run made, and what to type to use it."""
    config, out = job.config, str(job.out)
    is_adapter = config.method == LORA
    say(f"The {'adapter' if is_adapter else 'tuned model'} is {out}. Next:")
    say(f"  {shlex.join([program(), 'generate', '--model', out, '--prompt', question])}")
    if not is_adapter:
        say(f"  {shlex.join([program('mlx_lm.chat'), '--model', out])}")
        return
    if config.adapter_format == "peft":
        say("It is in PEFT's layout; --adapter-format both writes mlx-lm's beside it.")
    else:
        # A checkpoint that had to be converted is served from what it was converted to.
        is_converted = find(str(config.model)) != job.source
        base = str(job.source if is_converted else config.model)
        say(f"  {shlex.join([program('mlx_lm.server'), '--model', base, '--adapter-path', out])}")
    fuse = shlex.join([program(), "export", out, "FOLDER", "--fuse"])
    if bits := packed_bits(job.policy):
        say(
            "Beside its base it is exact. Fused, it is a model of 16 bits. Packed again in "
            f"{bits[0]} bits (--quantize {bits[0]}) it is not exact, and export measures what it "
            "keeps:"
        )
    else:
        say("To add it to the weights of its base:")
    say(f"  {fuse}")


def _print_verdict(verdict: Verdict) -> None:
    say(f"\n{verdict.sentence}", bold=True, colour=_COLOURS.get(verdict.outcome, "yellow"))
    say(f"{verdict.advice}\n" if verdict.advice else "")


def _measured(result: RunResult) -> tuple[list[GroupScore], list[GroupScore]]:
    """Scores of the held-out pairs, and apart of the kinds that no training pair is of."""
    if not result.policy.size:
        return [], []
    judged = is_taught(result.job.held_out.kinds, result.job.data.untaught)
    return _groups(result, judged), _groups(result, ~judged) if not judged.all() else []


def _groups(result: RunResult, rows: npt.NDArray[np.bool_]) -> list[GroupScore]:
    kinds = [result.job.held_out.kinds[row] or "-" for row in np.flatnonzero(rows)]
    beta = result.job.config.beta
    return score_groups(result.policy[:, rows], result.reference[:, rows], kinds, beta=beta)


def _print_scores(groups: Sequence[GroupScore], apart: Sequence[GroupScore]) -> None:
    """What held-out pairs gained; last and `apart` the kinds that no training pair is of."""
    say("Held-out pairs, after training")
    untaught = [replace(group, name=_UNTAUGHT) for group in apart[:1]]
    _print_groups([*groups, *untaught, *apart[1:]])


def _print_groups(groups: Sequence[GroupScore]) -> None:
    """A row a kind, with whether its interval lies above or below chance."""
    rows = [
        [
            " ".join(printable(group.name).split()) or "(none)",
            str(group.num_pairs),
            share(_reward_wins(group), group.num_pairs),
            f"{group.logprob_accuracy_before:.2f} -> {group.logprob_accuracy_after:.2f}",
            f"{group.margin:+.3f}",
            f"{group.chosen_reward:+.3f}",
            f"{group.rejected_reward:+.3f}",
            _change(group),
        ]
        for group in groups
    ]
    header, *lines = table([[*_COLUMNS, "change"], *rows], spare=_SPARE).split("\n")
    say(header)
    for group, line in zip(groups, lines, strict=True):
        say(
            line,
            colour=_MARK_COLOURS.get(_change(group)),
            bold=group.name in ("all", _UNTAUGHT),
        )
    say(f"\n{_READING}\nchange: better or worse where the whole interval is above or below 0.50.")


def _change(group: GroupScore) -> str:
    low, high = wilson_interval(_reward_wins(group), group.num_pairs)
    return BETTER if low > 0.5 else WORSE if high < 0.5 else "unclear"


def _print_time(totals: Mapping[str, float]) -> None:
    """Share of the steps' time by phase, and what padding cost and sharing prompts saved."""
    shares = [
        f"{name} {totals[key] / totals['seconds']:.0%}"
        for name, key in (
            ("forward and backward", "forward_backward_seconds"),
            ("update", "update_seconds"),
            ("reference", "reference_seconds"),
            ("data", "data_seconds"),
        )
    ]
    say(
        f"{totals['pairs'] / totals['seconds']:.1f} pairs/s, "
        f"{totals['real_tokens'] / totals['seconds']:.0f} tokens/s: {', '.join(shares)}.\n"
        f"Tokens computed: {totals['computed_tokens'] / totals['real_tokens']:.2f} x the real ones "
        f"(padding); without shared prompts it would have been "
        f"{totals['unshared_tokens'] / totals['real_tokens']:.2f} x."
    )


def as_record(names: dict[str, Any], which: str, assessment: Assessment) -> dict[str, Any]:
    """An assessment as plain data.

    Args:
        names: Model, reference, data and settings.
        which: Which pairs were evaluated.
        assessment: Of these pairs.
    """
    pairs, drift = assessment.pairs, assessment.drift
    controlled = assessment.length_controlled
    return {
        **names,
        "pairs": which,
        "read": pairs.read,
        "dropped": pairs.dropped,
        "cut": pairs.num_cut,
        "groups": _group_records(assessment.groups),
        "lengths": [asdict(group) for group in assessment.lengths],
        "length_controlled": controlled and asdict(controlled),
        "displacement": displacement_record(assessment.displacement),
        "calibration": asdict(assessment.calibration),
        "drift": asdict(drift) if drift else None,
        "warnings": drift.signs if drift else [],
    }


def _group_records(groups: Sequence[GroupScore]) -> list[dict[str, Any]]:
    return [
        {
            **asdict(group),
            "reward_accuracy_interval": wilson_interval(_reward_wins(group), group.num_pairs),
        }
        for group in groups
    ]


def print_assessment(names: dict[str, Any], which: str, assessment: Assessment) -> None:
    """Print an assessment; arguments as for `as_record`."""
    pairs, num = assessment.pairs, len(assessment.pairs.examples)
    dropped = f"; {pairs.read - num} dropped" if pairs.read > num else ""
    cut = f"; {pairs.num_cut} cut" if pairs.num_cut else ""
    say(f"policy     {names['model']}\nreference  {names['reference']}")
    say(f"data       {names['data']}: {counted(num, 'pair')}, {which}{dropped}{cut}")
    say(f"settings   beta {names['beta']:g}, max-length {names['max_length']}")
    say(f"loss       {assessment.groups[0].loss:.4f} (untrained: log 2 = 0.6931)\n")
    _print_groups(assessment.groups)
    say()
    _print_lengths(assessment.lengths, assessment.length_controlled)
    print_fallen(assessment.displacement)
    _print_calibration(assessment.calibration)
    _print_drift(assessment.drift)


def _reward_wins(group: GroupScore) -> int:
    return round(group.reward_accuracy * group.num_pairs)


def _print_lengths(groups: Sequence[LengthGroup], controlled: LengthControlled | None) -> None:
    rows = [["by length", "pairs", "right", "likelier"]]
    for group in groups:
        if num := group.num_pairs:
            before, after = group.logprob_wins_before / num, group.logprob_wins_after / num
            accuracy = f"{before:.2f} -> {after:.2f}"
        else:
            accuracy = "-"
        rows.append([group.name, str(num), share(group.reward_wins, num), accuracy])
    if controlled is not None:
        rows.append(["length-controlled", str(controlled.num_pairs), share_of(controlled), ""])
    say(table(rows))
    say(
        f"{LENGTH_READING} A policy that learned length is right in the first row and wrong in the "
        "last.\n"
    )


def _print_calibration(calibration: Reliability) -> None:
    rows = [["calibration", "pairs", "predicted", "right"]]
    for each in calibration.bins:
        rows.append(
            [
                f"{each.low:.3f}-{each.high:.3f}",
                str(each.num_pairs),
                f"{each.confidence:.3f}",
                share(each.right, each.num_pairs),
            ]
        )
    say(table(rows))
    say(
        f"ECE {calibration.ece:.3f}; a perfectly calibrated model would show "
        f"{calibration.ece_by_chance:.3f} on so many pairs.\n"
        "predicted: sigmoid(|margin|), how sure the policy is of its own pick; right: the share "
        "of picks that are the chosen answer.\n"
    )


def _print_drift(drift: Drift | None) -> None:
    if drift is None:
        say("drift      not measured (--num-prompts 0)")
        return
    cut = drift.policy_cut + drift.reference_cut
    limit = f"; cut at --max-tokens: {drift.policy_cut} and {drift.reference_cut}" if cut else ""
    say(
        f"drift      KL(policy || reference) {drift.kl_per_token:.4f} nats a token, "
        f"{drift.kl_per_answer:.3f} an answer\n"
        f"length     policy {drift.policy_length:.1f}, reference {drift.reference_length:.1f} "
        f"tokens an answer{limit}\n"
        f"repeats    policy {drift.policy_repetition:.3f}, reference "
        f"{drift.reference_repetition:.3f} of word triples came before in the answer\n"
        f"over {drift.num_prompts} prompts, answers sampled at temperature 1; KL on the policy's "
        f"own {drift.num_tokens} tokens."
    )
    for sign in drift.signs:
        say(f"warning: {sign}")
