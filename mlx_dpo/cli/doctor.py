"""`mlx_dpo doctor`: what this machine is, and whether it trains to the right numbers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.plan import about_link, measured_link
from mlx_dpo.cli.screen import say, show_json

if TYPE_CHECKING:
    from mlx_dpo.insight.doctor.examination import CheckResult

SCHEMA = "mlx_dpo.doctor/1"
_SUMMARY = {
    "ok": "Nothing stands out.",
    "look": "Nothing is broken; the lines that begin with 'look' tell what is different here.",
    "fail": "Something is broken here: please send the block below.",
}


@click.command()
@options.model("Examine this model instead: a folder, hub id or adapter.", required=False)
@options.path("--hosts", "Measure the link between these machines too.")
@options.as_json
@click.pass_context
def doctor(context: click.Context, model: str | None, hosts: str | None, as_json: bool) -> None:
    """Check this machine: its versions, its numbers, its speed.

    Runs the parts of a training run on small random models and, in a clone, on the embedded one,
    in about a minute: which path computes log-probs, plain against fast, the first loss, twenty
    gradients of one batch, a resumed run, memory against the plan, seconds; of a quantised model
    its products, and whether adapters train and can be turned off. The logits of --model are
    compared with those of transformers where torch is installed. With --hosts, versions of the
    machines are compared, and a sum over the link between them is timed. Nothing is kept. The
    block at the end names no person, path or host, and can be pasted into an issue; docs/mac.md
    of the repository explains each line. Exit code 1 if a check failed.

    \b
    Example:
      mlx_dpo doctor
    """
    from mlx_dpo.insight.doctor.examination import (
        examine,
        own_specimens,
        standard_specimens,
        worst,
    )
    from mlx_dpo.insight.doctor.hardware import describe_machine

    own = None if model is None else own_specimens(model)  # refused before anything is shown
    machine = describe_machine()
    if hosts is not None:
        machine["link"] = asdict(measured_link(hosts))
    if not as_json:
        say(_machine_table(machine) + "\n")
    with _progress("models"):
        specimens, more = own or standard_specimens()
    results = [*examine(specimens, _progress), *more]
    verdict = worst(results)
    about = {specimen.name: specimen.about for specimen in specimens}
    if as_json:
        record = {
            "schema": SCHEMA,
            "verdict": verdict,
            "machine": machine,
            "models": about,
            "checks": [result.as_json() for result in results],
        }
        show_json(record)
    else:
        say(_check_table(results, about))
        say(f"\n{_SUMMARY[verdict]} To report it, paste what lies between the lines:\n")
        say(f"{'-' * 40}\n{_block(machine, results, about)}\n{'-' * 40}")
    context.exit(1 if verdict == "fail" else 0)


@contextmanager
def _progress(name: str) -> Iterator[None]:
    """The name of what is done, until it is."""
    footer.doing(name, log=True)
    yield
    footer.clear()


def _machine_table(machine: Mapping[str, Any]) -> str:
    memory = machine["memory_bytes"]
    tf32 = machine["tf32"]["value"] or "not set"
    by_user = ", set by the user" if machine["tf32"]["set_by_user"] else ""
    rows = [
        ["device", f"{machine['device']} ({machine['backend']}, {machine['architecture']})"],
        ["memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"],
        ["system", f"{machine['system']}, {machine['machine']}"],
        ["versions", _versions(machine)],
        *([name.replace("_", " "), _limit(value)] for name, value in machine["limits"].items()),
        ["MLX may hold", f"{machine['mlx_memory_limit_bytes'] / 2**30:.1f} GiB"],
        ["TF32", f"MLX_ENABLE_TF32 {tf32}{by_user}"],
        *([["BLAS", machine["blas"]]] if machine["blas"] else []),
        *([["link", _about_link(machine["link"])]] if "link" in machine else []),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _about_link(figures: Mapping[str, Any]) -> str:
    """The link, and what a step of two usual sizes would take on it."""
    from mlx_dpo.runs.link import Link

    link = Link(**figures)
    lora, full = (link.seconds(size, layers) for size, layers in ((168e6, 33), (540e6, 33)))
    return (
        f"{link.ranks} ranks: {about_link(link)}; of a step, LoRA of rank 16 on 8 billion "
        f"parameters {lora:.2g} s, 135 million trained whole {full:.2g} s"
    )


def _versions(machine: Mapping[str, Any]) -> str:
    parts = [f"{name} {machine[name]}" for name in ("mlx-dpo", "mlx", "mlx-lm")]
    return ", ".join([*parts, f"Python {machine['python']}"])


def _limit(value: int) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else str(value)


def _check_table(results: Sequence["CheckResult"], about: Mapping[str, str]) -> str:
    """Two lines a check: verdict and figures, and what they mean."""
    lines, model = [], ""
    width = max(len(result.check) for result in results)
    for result in results:
        if result.model != model:
            model = result.model
            lines.append(f"\n{model}" + (f": {about[model]}" if model in about else ""))
        outcome = result.outcome
        lines.append(f"{outcome.verdict:4}  {result.check:{width}}  {outcome.value}")
        lines.append(f"{'':{width + 8}}{outcome.meaning}")
    return "\n".join(lines).strip()


def _block(
    machine: Mapping[str, Any], results: Sequence["CheckResult"], about: Mapping[str, str]
) -> str:
    """Machine and figures as plain text: what an issue needs."""
    names = [f"{result.model}: {result.check}" for result in results]
    width = max(map(len, names))
    models = "\n".join(f"{name}: {text}" for name, text in about.items())
    checks = "\n".join(
        f"{result.outcome.verdict:<4}  {name:<{width}}  {result.outcome.value}"
        for name, result in zip(names, results, strict=True)
    )
    return f"mlx_dpo doctor\n{_machine_table(machine)}\n{models}\n{checks}"
