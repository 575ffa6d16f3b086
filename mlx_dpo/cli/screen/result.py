"""What a finished training run shows: scores before and after, answers, what to type next."""

import shlex

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlx_dpo.cli.screen.terminal import gigabytes, printable, program
from mlx_dpo.insight.evaluation import GroupScore, score_groups
from mlx_dpo.runs.result import RunResult


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
        f"{result.seconds:.1f} s of training, peak memory {gigabytes(result.peak_bytes)}. "
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
