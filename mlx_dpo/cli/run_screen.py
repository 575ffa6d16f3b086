"""What a training run shows: a header, then a progress bar or plain lines."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from mlx_dpo.cli.footer import footer, show_at_once
from mlx_dpo.cli.options import is_at_hand
from mlx_dpo.cli.screen import VERDICT_COLOURS, about_template, clock, counted, say, show_problems
from mlx_dpo.convert.conversion import closed_way_back
from mlx_dpo.insight import words
from mlx_dpo.insight.audit.bias import Measures
from mlx_dpo.insight.audit.checks import LENGTH_ADVICE, OK, Check, check_length
from mlx_dpo.models.adapters import describe
from mlx_dpo.models.config import read_config
from mlx_dpo.models.device import TF32_SWITCH, blas, on_gpu
from mlx_dpo.models.export import left_behind
from mlx_dpo.models.packed import num_parameters, packed_bits
from mlx_dpo.models.verified import known, statement
from mlx_dpo.preferences.schema import Problems, by_code
from mlx_dpo.preferences.store import lengths
from mlx_dpo.runs.callbacks import Screen
from mlx_dpo.runs.config import EMBEDDED_CONFIG, RunConfig
from mlx_dpo.runs.data import RowCounts
from mlx_dpo.runs.defaults import USUAL_BETA, rate_of_model, warned_rate, why_rate
from mlx_dpo.runs.job import FINDING, READ_FIRST, Job
from mlx_dpo.runs.plan import gigabytes
from mlx_dpo.training.self_check import Choice

FEW_PAIRS = 50


class TerminalScreen(Screen):
    """Writes a run to stderr: a bar on a terminal, a line every --log-every steps elsewhere.

    Args:
        config: The run's settings.
        is_terminal: Whether stderr is one.
        verbose: Whether to show also the lines for work on the engine.
    """

    def __init__(self, config: RunConfig, is_terminal: bool, *, verbose: bool = False) -> None:
        self.config = config
        self.is_terminal = is_terminal
        self.verbose = verbose
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
        footer.clear()

    def working(self, what: str) -> None:
        if what == FINDING and not is_at_hand(str(self.config.model)):
            footer.clear()  # a download shows bars of its own
        else:
            footer.doing(what, log=what not in READ_FIRST)

    def tokenizing(self, done: int, total: int) -> None:
        footer.bar("reading the pairs", done, total, pace=f"{done / max(total, 1):.0%}")

    def data_checked(self, problems: Problems) -> None:
        if problems.num_errors == 1 and not self.config.drop_bad:
            return  # the run ends with it
        # A refusal says itself where all are, and leaves no folder of a run.
        refused = problems.num_errors and not self.config.drop_bad
        rest = "" if refused else "problems.jsonl in the run's folder lists all."
        show_problems(problems, err=True, drop_bad=self.config.drop_bad, rest=rest)

    def planning(self) -> None:
        footer.doing("planning memory, which takes some seconds once", log=True)

    def planned(self, outcome: str) -> None:
        if outcome:
            say(outcome, err=True)

    def prepared(self, job: Job, folder: Path | None) -> None:
        self.max_steps = job.max_steps
        config = job.config
        self._line("model", f"{config.model}  ({_about_model(job)})")
        read = read_config(job.source)
        if self.verbose or not known(read)[0]:
            say(statement(read, str(config.model)), err=True)
        if job.tuned_before:
            self._line(
                "history",
                f"this model seems to have had preference training: {job.tuned_before}. It is the "
                "reference: gains are measured from it, and not from plain SFT",
            )
        if (why := closed_way_back(job.source)) is not None:
            self._line("way back", f"closed: {why}, so convert can't make a PyTorch model of it")
        held_out = f"{len(job.held_out.examples) or 'none'} held out"
        count = counted(len(job.train.examples), "pair")
        self._line("data", f"{config.data}  ({count} to train on, {held_out})")
        self._line("settings", _about_settings(job))
        if self.config.learning_rate is None:
            why = why_rate(config.method, job.num_parameters, job.max_steps)
            self._line("rate", f"{config.learning_rate:g}, {why}; --learning-rate sets another")
        if config.epochs > 1 and self.config.epochs is None and not config.steps:
            self._line(
                "epochs",
                f"{config.epochs}, because {count} make too few steps in one; --epochs or --steps "
                "sets another length",
            )
        if template := about_template(job.chat):
            self._line("template", template)
        self._line("run", f"{folder or 'dry run'}  ->  {job.out}")
        if names := left_behind(job.source):
            self._line("not copied", f"{', '.join(names)}, from {job.source}")
        lengths = length_check(job)
        longer, shorter = (lengths.figures[f"{side}_longer"] for side in ("chosen", "rejected"))
        say(
            f"{'lengths':<10}  {lengths.verdict}: chosen longer in {longer:.0%} of the pairs, "
            f"shorter in {shorter:.0%}; mean gap {lengths.figures['mean_gap']:+.1f} tokens",
            err=True,
            colour=VERDICT_COLOURS[lengths.verdict],
        )
        if lengths.verdict != OK:
            self.warned(f"length bias: {LENGTH_ADVICE}; training goes on")
        for warning in _warnings(job):
            self.warned(warning)

    def path_chosen(self, choice: Choice) -> None:
        for _, reason in choice.refused[:1]:
            self.warned(f"training is slower, by the {choice.path.name} path: {reason}")
        if choice.tf32:
            self.warned(f"TF32 is on ({TF32_SWITCH}=1): products are computed from 10 bits")
        if not self.verbose:
            return
        if choice.num_pairs:
            self._line(
                "path",
                f"{choice.path.name}: agrees with the plain path on "
                f"{counted(choice.num_pairs, 'pair')} (log-probs to "
                f"{choice.largest_difference:.0e}) and their gradients",
            )
        else:
            self._line("path", f"{choice.path.name}: the definition, and the slowest")

    def scoring(self, done: int, total: int) -> None:
        footer.bar("scoring the pairs before training", done, total, pace=f"{done}/{total}")
        if done == total and self.verbose:
            self._line("reference", f"log-probs of {counted(total, 'pair')} computed")

    def reference_found(self, total: int) -> None:
        if self.verbose:
            self._line(
                "reference", f"log-probs of {counted(total, 'pair')} found from an earlier run"
            )

    def checked(self, job: Job, start: dict[str, float]) -> None:
        account = job.data.account
        is_off = job.config.adapter_reference == "base"
        if not self.verbose:
            passed = "not made (--adapter-reference base)" if is_off else "passed"
            log_2 = "" if is_off else ": the loss starts at log 2"
            self._line("self-check", f"{passed}{log_2}{_about_rows(account)}")
            return
        is_log_2 = " (not checked)" if is_off else " = log 2"
        why = f" ({by_code(account.dropped)})" if account.dropped else ""
        self._line(
            "self-check",
            f"loss {start['loss']:.4f}{is_log_2}; gradient norm {start['grad_norm']:.3g} > 0; "
            f"{job.chat.closing_text} closes {account.num_closed} of {2 * len(job.examples)} "
            f"answers; {account.read} pairs read, {account.dropped.total()} dropped{why}, "
            f"{account.num_cut} cut, {account.num_merged} merged at the boundary",
        )

    def tracked(self, text: str) -> None:
        self._line("tracker", text)

    def ended_early(self, text: str) -> None:
        say(text, err=True)

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
            footer.bar(name, done, self.max_steps, pace=pace, figures=figures)
        elif done % self.config.log_every == 0 or done in (1, self.max_steps):
            say(f"{name}  {figures}  {pace}", err=True)

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        say(
            f"step {step + 1}/{self.max_steps}  held out: loss {metrics['loss']:.4f}  margin "
            f"{metrics['reward_margin']:+.3f}  accuracy {metrics['accuracy']:.2f}",
            err=True,
        )

    def sampled(self, step: int, answers: Sequence[tuple[str, str]]) -> None:
        for prompt, answer in answers:
            shown = " ".join(f"{prompt}  ->  {answer or '(nothing)'}".split())
            say(f"step {step + 1}/{self.max_steps}  {shown}", err=True)

    def stopping(self) -> None:
        show_at_once("stopping after this batch; a second time stops at once", self.is_terminal)

    def warned(self, text: str) -> None:
        say(f"warning: {text}", err=True)

    def _line(self, name: str, text: str) -> None:
        say(f"{name:<10}  {text}", err=True)


def _about_settings(job: Job) -> str:
    config = job.config
    rate = f"learning rate {config.learning_rate:g}"
    if rate_of_model(job.source).get("learning_rate") == config.learning_rate:
        rate += f" (the model's own, in its {EMBEDDED_CONFIG.name})"
    together = f" x {config.grad_accumulation}" if config.grad_accumulation > 1 else ""
    length = "" if config.steps else f"{counted(config.epochs, 'epoch')} = "
    return (
        f"beta {config.beta:g}, {rate}, batch "
        f"{config.batch_size}{together}, {length}{counted(job.max_steps, 'step')}, "
        f"clip {config.grad_clip:g}, reference {_about_reference(config)}, seed {config.seed}"
    )


def _about_rows(account: RowCounts) -> str:
    """What became of rows that are not used as they stand; empty where all are."""
    parts = []
    if left_out := account.dropped.total():
        parts.append(f"{left_out} of {counted(account.read, 'row')} left out")
    if account.num_cut:
        parts.append(f"answers of {counted(account.num_cut, 'pair')} cut at --max-length")
    return f"; {', '.join(parts)}" if parts else ""


def length_check(job: Job) -> Check:
    """The verdict of `audit` on the lengths of the pairs of --data, in tokens."""
    return check_length(Measures("tokens", lengths(job.measured).T))


def _warnings(job: Job) -> Iterator[str]:
    """What about a run's settings is unusual."""
    config = job.config
    if job.max_steps <= config.warmup_steps:
        yield (
            f"all {counted(job.max_steps, 'step')} lie within the warm-up of "
            f"{config.warmup_steps}: lower --warmup-steps or raise --epochs"
        )
    if (warning := warned_rate(config, job.num_parameters)) is not None:
        yield warning
    if sys.platform == "linux" and not on_gpu() and not blas():
        yield (
            "MLX computes with the slow BLAS of its wheel; with OpenBLAS loaded first, training is "
            "several times faster (README, on Linux)"
        )
    if len(job.train.examples) < FEW_PAIRS:
        yield (
            f"{counted(len(job.train.examples), 'pair')} to train on: fewer than {FEW_PAIRS} "
            "rarely change how a model answers, and too few are held out to measure it"
        )
    low, high = USUAL_BETA
    if not low <= config.beta <= high:
        risk = "may run far from" if config.beta < low else "hardly leaves"
        yield (
            f"beta {config.beta:g} lies outside the usual {low}-{high}: the policy {risk} the "
            "reference"
        )
    if config.adapter_reference == "base":
        yield (
            "--adapter-reference base: the policy starts away from its reference, so the loss "
            "does not start at log 2, and the self-check of the start is off"
        )


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
