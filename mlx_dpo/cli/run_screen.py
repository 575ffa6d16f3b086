"""What a training run shows: a header, then a progress bar or plain lines."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console

from mlx_dpo.cli.screen import Bar, about_template, clock, counted, printable
from mlx_dpo.convert.conversion import closed_way_back
from mlx_dpo.insight import words
from mlx_dpo.models.adapters import describe
from mlx_dpo.models.device import TF32_SWITCH
from mlx_dpo.models.export import left_behind
from mlx_dpo.models.hub import read_config
from mlx_dpo.models.packed import num_parameters, packed_bits
from mlx_dpo.models.verified import statement
from mlx_dpo.preferences.schema import ERROR, Problems, by_code
from mlx_dpo.preferences.store import length_bias
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.config import RunConfig
from mlx_dpo.runs.job import Job
from mlx_dpo.runs.plan import gigabytes
from mlx_dpo.training.self_check import Choice

USUAL_BETA = (0.05, 0.5)
FEW_PAIRS = 50


class TerminalScreen(Screen):
    """Writes a run to stderr: a bar on a terminal, a line every --log-every steps elsewhere.

    Args:
        config: The run's settings.
        is_terminal: Whether stderr is one.
    """

    def __init__(self, config: RunConfig, is_terminal: bool) -> None:
        self.config = config
        self.is_terminal = is_terminal
        # Lines of a log are not wrapped: logs are searched.
        self.console = Console(
            stderr=True, highlight=False, emoji=False, width=None if is_terminal else 1000
        )
        self.bar: Bar | None = None
        self.note = ""
        self.seconds = 0.0
        self.pairs = 0.0
        self.first_step: int | None = None
        self.max_steps = 0

    def __enter__(self) -> "TerminalScreen":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._end_bar()

    def tokenizing(self, done: int, total: int) -> None:
        if self.is_terminal:
            self._show_bar("tokenizing", done, total)

    def data_checked(self, problems: Problems) -> None:
        self._end_bar()
        if problems.num_errors == 1 and not self.config.drop_bad:
            return  # the run ends with it
        for problem in problems.shown():
            style = "red" if problem.level == ERROR else "yellow"
            self._print(printable(f"{problem.level}: {problem}"), style=style)
        more = problems.counts.total() - len(problems.shown())
        if more:
            self._print(f"and {counted(more, 'problem')} more")

    def planning(self) -> None:
        if self.is_terminal:
            self._show_bar("planning memory", 0, 1)
        else:
            self._line("memory", "planning, which takes some seconds once")

    def planned(self, outcome: str) -> None:
        self._end_bar()
        if outcome:
            self._print(outcome)

    def prepared(self, job: Job, folder: Path | None) -> None:
        self.max_steps = job.max_steps
        config, bias = job.config, length_bias(job.train.examples)
        held_out = f", {len(job.held_out.examples) or 'none'} held out"
        length = "" if config.steps else f"{counted(config.epochs, 'epoch')} = "
        few = config.epochs > 1 and self.config.epochs is None and not config.steps
        self._line("model", f"{config.model}  ({_about_model(job)})")
        self._print(statement(read_config(job.source), str(config.model)))
        if (why := closed_way_back(job.source)) is not None:
            self._line("way back", f"closed: {why}, so that convert can't make it PyTorch's again")
        self._line(
            "data",
            f"{config.data}  ({counted(len(job.train.examples), 'pair')} to train on{held_out})",
        )
        self._line(
            "settings",
            f"beta {config.beta:g}, learning rate {config.learning_rate:g}, batch "
            f"{config.batch_size}"
            + (f" x {config.grad_accumulation}" if config.grad_accumulation > 1 else "")
            + f", {length}{counted(job.max_steps, 'step')}, clip {config.grad_clip:g}, "
            f"reference {_about_reference(config)}, seed {config.seed}",
        )
        if few:
            self._line(
                "epochs",
                f"{config.epochs}, because {counted(len(job.train.examples), 'pair')} make too few "
                "steps in one; --epochs or --steps sets another length",
            )
        if template := about_template(job.chat):
            self._line("template", printable(template))
        self._line("run", f"{folder or 'dry run'}  ->  {job.out}")
        if names := left_behind(job.source):
            self._line("not copied", printable(f"{', '.join(names)}, from {job.source}"))
        self._line(
            "lengths",
            f"chosen longer in {bias.chosen_longer:.0%} of the pairs, shorter in "
            f"{bias.rejected_longer:.0%}; mean gap {bias.mean_gap:+.1f} tokens",
        )
        if bias.is_lopsided:
            self.warned(
                f"the chosen answer is the longer one in {bias.chosen_share:.0%} of the pairs that "
                "differ in length: the model may learn length. Balance the pairs"
            )
        if job.max_steps <= config.warmup_steps:
            self.warned(
                f"all {counted(job.max_steps, 'step')} lie within the warm-up of "
                f"{config.warmup_steps}: lower --warmup-steps or raise --epochs"
            )
        if len(job.train.examples) < FEW_PAIRS:
            self.warned(
                f"{counted(len(job.train.examples), 'pair')} to train on: fewer than {FEW_PAIRS} "
                "rarely change how a model answers, and too few are held out to measure it"
            )
        low, high = USUAL_BETA
        if not low <= config.beta <= high:
            risk = "may run far from" if config.beta < low else "hardly leaves"
            self.warned(
                f"beta {config.beta:g} lies outside the usual {low}-{high}: the policy {risk} the "
                "reference"
            )

        if config.adapter_reference == "base":
            self.warned(
                "--adapter-reference base: the policy starts away from its reference, so the loss "
                "does not start at log 2, and the self-check of the start is off"
            )

    def path_chosen(self, choice: Choice) -> None:
        for name, reason in choice.refused:
            self.warned(f"path {name} is not taken: {reason}")
        tf32 = f"; TF32 is on ({TF32_SWITCH}=1): products of 10 bits" if choice.tf32 else ""
        if choice.num_pairs:
            self._line(
                "path",
                f"{choice.path.name}: agrees with the plain path on "
                f"{counted(choice.num_pairs, 'pair')} (log-probs to "
                f"{choice.largest_difference:.0e}) and their gradients{tf32}",
            )
        else:
            self._line("path", f"{choice.path.name}: the definition, and the slowest{tf32}")

    def scoring(self, done: int, total: int) -> None:
        if self.is_terminal:
            self._show_bar("reference log-probs", done, total)
        elif done == total:
            self._line("reference", f"log-probs of {counted(total, 'pair')} computed")

    def reference_found(self, total: int) -> None:
        self._line("reference", f"log-probs of {counted(total, 'pair')} found from an earlier run")

    def checked(self, job: Job, start: dict[str, float]) -> None:
        self._end_bar()
        account = job.data.account
        is_log_2 = " (not checked)" if job.config.adapter_reference == "base" else " = log 2"
        why = f" ({by_code(account.dropped)})" if account.dropped else ""
        self._line(
            "self-check",
            f"loss {start['loss']:.4f}{is_log_2}; gradient norm {start['grad_norm']:.3g} > 0; "
            f"{job.chat.closing_text} closes {account.num_closed} of {2 * len(job.examples)} "
            f"answers; {account.read} pairs read, {account.dropped.total()} dropped{why}, "
            f"{account.num_cut} cut, {account.num_merged} merged at the boundary",
        )

    def ended_early(self, text: str) -> None:
        self._print(text)

    def resumed(self, step: int) -> None:
        self._line(
            "resume",
            f"going on after step {step}" if step else "no checkpoint yet: starting from step 0",
        )

    def stepped(self, step: int, metrics: dict[str, float], timing: dict[str, float]) -> None:
        self.seconds += timing["seconds"]
        self.pairs += timing["pairs"]
        self.first_step = step if self.first_step is None else self.first_step
        done = step + 1
        each = self.seconds / (done - self.first_step)
        figures = (
            f"loss {metrics['loss']:.4f}  margin {metrics['reward_margin']:+.3f}  chosen "
            f"{metrics['chosen_reward']:+.3f}  rejected {metrics['rejected_reward']:+.3f}  "
            f"accuracy {metrics['accuracy']:.2f}"
        )
        pace = (
            f"{self.pairs / self.seconds:.1f} pairs/s  ETA {clock(each * (self.max_steps - done))}"
            f"  peak {gigabytes(timing['peak_bytes'])}"
        )
        name = f"step {done}/{self.max_steps}"
        if self.is_terminal:
            self._show_bar(name, done, self.max_steps, pace=pace, figures=figures)
        elif done % self.config.log_every == 0 or done in (1, self.max_steps):
            self._print(f"{name}  {figures}  {pace}")

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self._print(
            f"step {step + 1}/{self.max_steps}  held out: loss {metrics['loss']:.4f}  margin "
            f"{metrics['reward_margin']:+.3f}  accuracy {metrics['accuracy']:.2f}"
        )

    def sampled(self, step: int, answers: Sequence[tuple[str, str]]) -> None:
        for prompt, answer in answers:
            shown = " ".join(printable(f"{prompt}  ->  {answer or '(nothing)'}").split())
            self._print(f"step {step + 1}/{self.max_steps}  {shown}")

    def stopping(self) -> None:
        # A signal handler: no locks, no console. The bar has hidden the cursor, and a second signal
        # would leave it hidden.
        self.note = line = "stopping after this batch; once more leaves at once"
        if self.bar is not None:
            self.bar.note = line
        show_cursor = "\x1b[?25h" if self.is_terminal else ""
        os.write(2, (show_cursor if self.bar is not None else f"{show_cursor}{line}\n").encode())

    def warned(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow")

    def _line(self, name: str, text: str) -> None:
        self._print(f"{name:<10} {text}")

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=True)

    def _show_bar(
        self, name: str, done: int, total: int, *, pace: str = "", figures: str = ""
    ) -> None:
        if self.bar is None:
            self.bar = Bar(self.console)
            self.bar.note = self.note
        self.bar.update(name, done, total, pace=pace, figures=figures)

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _about_model(job: Job) -> str:
    """Size, packing and dtype of a model, and what of it trains."""
    adapter = describe(job.policy)
    size = num_parameters(job.policy) - (adapter.parameters if adapter else 0)
    bits = " and ".join(map(str, packed_bits(job.policy)))
    text = f"{words.parameters(size)} parameters" + (f" in {bits} bits" if bits else "")
    text += f", {job.config.dtype}"
    if adapter is None:
        return text
    return (
        f"{text}; {'quantised, so ' if bits else ''}LoRA: rank {words.numbers(adapter.ranks)}, "
        f"scale {words.numbers(adapter.scales)}, {words.adapted_layers(job.config)}, "
        f"{words.parameters(adapter.parameters)} trained"
    )


def _about_reference(config: RunConfig) -> str:
    if config.adapter_reference is None:
        return config.reference
    without = config.adapter_reference == "base"
    return f"{config.reference}, {'without' if without else 'with'} {config.adapter}"
