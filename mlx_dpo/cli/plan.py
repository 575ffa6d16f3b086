"""`mlx_dpo plan`: the memory a run will need; and the settings that keep a budget."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.screen import clock, say, show_json, show_problems
from mlx_dpo.errors import BudgetError
from mlx_dpo.runs.config import RunConfig, given_names, parse_size, resolve

if TYPE_CHECKING:
    from mlx_dpo.memory.settings import Prediction
    from mlx_dpo.runs.callbacks import Screen
    from mlx_dpo.runs.data import Data
    from mlx_dpo.runs.link import Link
    from mlx_dpo.runs.profile import Calibration

_WHY = {
    "reference": "reference scored once by the untrained policy: one model less, no time",
    "batch_size": "smaller batches: the same step, a little slower, a second gradient is held",
    "grad_accumulation": "batches that add up to the same step",
    "checkpoint_layers": "layers computed again for the gradient: up to a third more time",
    "dtype": "half the bytes of each number, and no faster on an M1 or M2; stochastic rounding",
    "optimizer": "almost no optimizer state; another trajectory than AdamW's",
}


@click.command()
@options.config(*options.OF_A_SAVED_RUN)
@click.option(
    "--calibrate", is_flag=True, help="Load the model and run a few steps: how long is an epoch?"
)
@options.path("--hosts", "Say also what a step sends between these machines; measures the link.")
@options.as_json
def plan(
    config: Path | None, calibrate: bool, hosts: str | None, as_json: bool, **given: Any
) -> None:
    """Predict how much memory a training run will need.

    Takes the settings of `train`, the lengths of the data and the shapes of the model, and reads no
    weights: a training step is traced, and the arrays it would hold are counted. The figure is that
    of mx.get_peak_memory(). With --memory-budget, settings that were not given are chosen so that
    the run fits, in this order: cached reference, smaller batches that add up to the same step,
    layer checkpointing, and for full fine-tuning bfloat16, Adafactor. Exit code 4 if nothing
    fits. From the hub, only the config and tokenizer are downloaded. With --calibrate, a
    few steps under those settings are run and thrown away. With --hosts, the machines sum a few
    numbers, and it says whether training on all of them is worth it.

    \b
    Examples:
      mlx_dpo plan --model ~/models/my-sft --data pairs.jsonl
      mlx_dpo plan --model ~/models/my-sft --data pairs.jsonl --memory-budget 4GB
    """
    from mlx_dpo.models.parts import by_layer
    from mlx_dpo.runs.defaults import decided
    from mlx_dpo.runs.plan import changes, fit, make_plan

    given = options.typed(given)
    settings = decided(resolve(config, given), weights=calibrate)
    refuse_foreign(*settings.files)
    footer.doing("reading the pairs")
    made = make_plan(
        settings,
        progress=lambda done, total: footer.bar("reading the pairs", done, total),
        problems=lambda found: show_problems(
            found,
            err=True,
            drop_bad=settings.drop_bad,
            rest=f"mlx_dpo data check {settings.data} --log FILE lists all.",
        ),
    )
    chosen, budget = None, None
    if settings.memory_budget is not None:
        budget = parse_size(settings.memory_budget)
        assert budget is not None
        footer.doing("looking for settings within the budget", log=True)
        chosen = fit(made, budget, given_names(config, given)).chosen
    times = None
    if calibrate:
        from mlx_dpo.runs.profile import calibrate as measure

        footer.doing("loading the model and running a few steps", log=True)
        changed = {} if chosen is None else changes(settings, chosen.settings)
        times = measure(replace(settings, **changed, memory_budget=None))
    link = None if hosts is None else measured_link(hosts)
    footer.doing("tracing a training step")
    if as_json:
        record = _as_json(made.prediction, budget, chosen)
        record["link"] = None if link is None else asdict(link)
        record["calibration"] = None if times is None else asdict(times)
        show_json(record)
        return
    _show(settings, made.prediction)
    if budget is not None and chosen is not None:
        _show_chosen(settings, budget, chosen)
    if times is not None:
        _show_times(times)
    if link is not None:
        # A message for each layer, and one in which all meet.
        layers = by_layer(made.predictor.shell(made.prediction.settings))
        trained = made.prediction.num_trained
        _show_link(link, trained, 1 + len(layers), None if times is None else times.step_seconds)


def within_budget(
    settings: RunConfig,
    given: set[str],
    screen: "Screen",
    *,
    keep: bool = True,
    least: int | None = None,
) -> "tuple[RunConfig, Data | None]":
    """Settings that keep the memory budget of a run, and its pairs, if they were read for that.

    Without --memory-budget the budget is a share of what the GPU recommends. A run that does not
    fit into that one is warned of and keeps its settings.

    Args:
        settings: Of the run.
        given: Names of the settings that somebody chose: they are not changed.
        screen: Shows what happens.
        keep: Whether token ids and the solution are kept on disk for later runs.
        least: What the smallest of several machines recommends.

    Raises:
        BudgetError: If no settings keep --memory-budget.
    """
    from mlx_dpo.runs.defaults import decided
    from mlx_dpo.runs.plan import as_options, budget_of, changes, fit, gigabytes, make_plan

    settings = decided(settings)
    budget = budget_of(settings, least)
    if budget is None:
        return settings, None
    plan = make_plan(settings, keep=keep, progress=screen.tokenizing, problems=screen.data_checked)
    try:
        fitted = fit(plan, budget, given, keep=keep, planning=screen.planning)
    except BudgetError as error:
        if settings.memory_budget is not None:
            raise
        screen.planned(f"warning: {error}")  # nobody asked for a budget
        return settings, plan.data
    changed = changes(settings, fitted.chosen.settings)
    outcome = (
        f"memory: {as_options(changed)}, for a peak of {gigabytes(fitted.chosen.total)} within "
        f"{gigabytes(budget)} (without: {gigabytes(fitted.asked.total)}, predicted)"
    )
    screen.planned(outcome if changed else "")
    return replace(settings, **changed), plan.data


def shown_pairs(pairs: list[tuple[int, int, int]], most: int = 60) -> str:
    """Lengths of a batch's prompts, chosen and rejected responses, on one line."""
    text = ", ".join(f"{p}+{c}/{r}" for p, c, r in pairs)
    text = text if len(text) <= most else text[: most - 3] + "..."
    return f"{text}  (tokens of prompt + chosen/rejected)"


def _show(settings: RunConfig, prediction: "Prediction") -> None:
    from mlx_dpo.memory.solve import SHARE, machines
    from mlx_dpo.runs.plan import gigabytes

    trained = f", {prediction.num_trained / 1e6:.1f} M of them trained"
    if prediction.num_trained == prediction.num_parameters:
        trained = ""
    count = f"{prediction.num_parameters / 1e6:.1f} M parameters{trained}"
    say(f"model      {settings.model}  ({count})")
    say(f"data       {settings.data}")
    say(f"largest    {shown_pairs(prediction.pairs)}")
    say(f"path       {prediction.path}")
    say()
    notes = {"reference": f"  {prediction.settings.reference}"}
    if prediction.settings.method == "lora":
        notes |= {"weights": "  frozen", "adapters": f"  {_shown_adapter(settings)}, float32"}
    for name, size in prediction.parts.items():
        note = notes.get(name, "")
        say(f"{name:16} {gigabytes(size):>10}{note}")
    say(
        f"{'peak':16} {gigabytes(prediction.total):>10}  as mx.get_peak_memory(), in "
        f"{prediction.moment}"
    )
    if prediction.on_gpu != prediction.total:
        note = "which multiplies packed weights as they are"
        say(f"{'on a GPU':16} {gigabytes(prediction.on_gpu):>10}  {note}")
    say(f"{'buffer cache':16} {'':>10}  on top; within a budget, and freed first\n")
    say("machine    for the GPU")
    for machine in machines():
        share = gigabytes(machine.recommended)
        say(f"{machine.name:>8}   {share:>11}  {machine.verdict(prediction.on_gpu)}")
    say(
        f"(fits: within {SHARE:.0%} of it. The share is what macOS recommends by public logs, not "
        "measured here)"
    )


def _shown_adapter(settings: RunConfig) -> str:
    if settings.adapter is not None:
        return f"from {settings.adapter}"
    where = "all" if settings.lora_layers is None else f"the last {settings.lora_layers}"
    return f"rank {settings.lora_rank}, {settings.lora_modules}, {where} blocks"


def _show_chosen(settings: RunConfig, budget: int, chosen: "Prediction") -> None:
    from mlx_dpo.runs.plan import as_options, changes, gigabytes

    changed = changes(settings, chosen.settings)
    if not changed:
        say(f"\nbudget     {gigabytes(budget)}: fits as it is")
        return
    say(f"\nbudget     {gigabytes(budget)}: {gigabytes(chosen.total)} with {as_options(changed)}")
    for name in changed:
        say(f"{'':9}  {_WHY[name]}")


def measured_link(hosts: str) -> "Link":
    """The link between the machines of a file, measured."""
    from mlx_dpo.runs.launcher import read_hosts
    from mlx_dpo.runs.link import measure_link

    found = read_hosts(Path(hosts))
    footer.doing(f"measuring the link between {len(found.names)} machines", log=True)
    return measure_link(found, lambda line: say(line, err=True))


def about_link(link: "Link") -> str:
    """A link in figures."""
    return f"{link.latency * 1e3:.2g} ms a message, {link.bandwidth / 1e6:.3g} MB/s of sums"


def _show_link(link: "Link", trained: int, layers: int, step: float | None) -> None:
    """What a step sends, how long that takes, and whether it is worth it."""
    size = 4 * trained  # float32
    seconds = link.seconds(size, layers)
    say(f"\nlink       {link.ranks} ranks: {about_link(link)}")
    say(f"a step     sends {size / 1e6:.3g} MB in {layers} messages: {seconds:.2g} s")
    say(about_worth(link, seconds, step))


def about_worth(link: "Link", seconds: float, step: float | None) -> str:
    """Whether training on all ranks is worth it.

    Args:
        link: Between them.
        seconds: That the sums of a step take.
        step: Seconds of a step in one process, where they are known.
    """
    from mlx_dpo.runs.link import SHARE

    even, worth = (link.least_step(seconds, share) for share in (1 / link.ranks, SHARE))
    most = SHARE * link.ranks
    if step is None:
        return (
            f"worth it   where a step of one process takes {worth:.2g} s or more: {most:.2g} times "
            f"as fast; slower below {even:.2g} s (--calibrate measures it)"
        )
    times = step / (step / link.ranks + seconds)
    verdict = "worth it" if times >= most else "of little use" if times > 1.1 else "not worth it"
    return f"{verdict}: a step takes {step:.2g} s here, and would be {times:.2g} times as fast"


def _show_times(times: "Calibration") -> None:
    scoring = ""
    if times.reference_seconds:
        scoring = f"; before the first, {clock(times.reference_seconds)} for the reference"
    say(
        f"\nan epoch   about {clock(times.epoch_seconds)}: {times.steps_per_epoch} steps of "
        f"{times.step_seconds:.2g} s{scoring}\n"
        f"           from {times.steps} steps just run here; evaluation, answers and saves come "
        "on top"
    )


def _as_json(
    prediction: "Prediction", budget: int | None, chosen: "Prediction | None"
) -> dict[str, Any]:
    from mlx_dpo.memory.solve import machines

    return {
        **_prediction_as_json(prediction),
        "machines": [{**asdict(m), "verdict": m.verdict(prediction.on_gpu)} for m in machines()],
        "budget": budget,
        "chosen": None if chosen is None else _prediction_as_json(chosen),
    }


def _prediction_as_json(prediction: "Prediction") -> dict[str, Any]:
    return {
        "peak_bytes": prediction.total,
        "parts": prediction.parts,
        "moment": prediction.moment,
        "path": prediction.path,
        "pairs": prediction.pairs,
        "settings": asdict(prediction.settings),
    }
