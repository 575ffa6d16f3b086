"""`mlx_dpo eval`."""

import json
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli.options import Name
from mlx_dpo.errors import UsageError
from mlx_dpo.runs.config import RunConfig

if TYPE_CHECKING:
    from mlx_dpo.insight.scoring import Judged
    from mlx_dpo.records import Preference


@click.command(name="eval")
@click.option(
    "--model", required=True, metavar="FOLDER", type=Name(), help="The trained model (policy)."
)
@click.option(
    "--reference",
    metavar="FOLDER",
    type=Name(),
    help="The model it was trained from. Default: the one its dpo.json names.",
)
@click.option(
    "--data", required=True, metavar="FILE", type=Name(), help="Preference pairs, .json or .jsonl."
)
@click.option("--drop-bad", is_flag=True, help="Leave rows with errors out, as train does with it.")
@click.option(
    "--all-pairs", is_flag=True, help="Of the run's own data, also the pairs it was trained on."
)
@click.option(
    "--beta",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Scale of the rewards. [default: the run's own, else {RunConfig.beta}]",
)
@click.option(
    "--max-length",
    type=click.IntRange(min=2),
    help="Longest prompt + response in tokens. "
    f"[default: the run's own, else {RunConfig.max_length}]",
)
@click.option(
    "--num-prompts",
    type=click.IntRange(min=0),
    default=20,
    show_default=True,
    help="Prompts both models answer, to measure drift and length; 0 answers none.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Longest of these answers.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Decides what is sampled.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
def evaluate(
    model: str,
    reference: str | None,
    data: str,
    drop_bad: bool,
    all_pairs: bool,
    beta: float | None,
    max_length: int | None,
    num_prompts: int,
    max_tokens: int,
    seed: int,
    as_json: bool,
) -> None:
    """Judge a trained model on held-out pairs, beside the model it was trained from.

    Accuracy by kind and by length, calibration, and drift. Where --data is the file the model was
    trained on, only the pairs its run held out are judged. Both models are held in memory.

    \b
    Example:
      mlx_dpo eval --model checkpoints/tiny-sft-dpo --data data/dpo/preferences.json
    """
    from mlx_dpo.cli.results import as_record, print_assessment
    from mlx_dpo.cli.screen import progress
    from mlx_dpo.insight.evaluation import assess
    from mlx_dpo.insight.scoring import open_model

    preferences = read_pairs(data, drop_bad)
    policy = open_model(model)
    other = open_model(reference or reference_of(model, policy.record))
    rows, which = _rows_to_judge(preferences, data, policy, all_pairs)
    settings: dict[str, Any] = {
        "beta": beta or setting_of_run(policy.record, "beta"),
        "max_length": max_length or setting_of_run(policy.record, "max_length"),
    }
    _warn_of_foreign_reference(policy, other)
    with progress() as done:
        found = assess(
            policy,
            other,
            rows,
            **settings,
            drop_bad=drop_bad,
            num_prompts=num_prompts,
            max_tokens=max_tokens,
            seed=seed,
            progress=done,
        )
    names = {"model": policy.name, "reference": other.name, "data": data, **settings}
    if as_json:
        click.echo(json.dumps(as_record(names, which, found), indent=2))
    else:
        print_assessment(names, which, found)


def read_pairs(data: str, drop_bad: bool, *, compare: bool = True) -> "list[Preference]":
    """The pairs of a file, with a line on stderr about rows that were left out.

    Raises:
        UsageError: If there is no such file.
        DataError: If it has errors and `drop_bad` is off.
    """
    from mlx_dpo.preferences.reader import read_preferences
    from mlx_dpo.preferences.schema import Problems, by_code

    problems = Problems()
    preferences = read_preferences(data, problems, drop_bad=drop_bad, compare=compare)
    if problems.num_errors:
        click.echo(f"{data}: rows with errors left out: {by_code(problems.errors)}", err=True)
    return preferences


def reference_of(model: str, record: dict[str, Any]) -> str:
    """The model a run's record says the policy was trained from.

    Raises:
        UsageError: If it does not say.
    """
    try:
        name = record["trained_from"]["model"]
    except (KeyError, TypeError):
        name = None
    if not isinstance(name, str):
        raise UsageError(
            f"{model}: no dpo.json in it says what it was trained from; pass --reference"
        )
    return name


def setting_of_run(record: dict[str, Any], key: str) -> Any:
    """A number among the settings of the run that made a model, or that setting's default."""
    default = getattr(RunConfig, key)
    settings = record.get("settings")
    value = settings.get(key) if isinstance(settings, dict) else None
    is_usable = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return value if is_usable else default


def _rows_to_judge(
    preferences: "list[Preference]", data: str, policy: "Judged", all_pairs: bool
) -> "tuple[list[Preference], str]":
    from mlx_dpo.insight.evaluation import held_out_of_run

    held_out = held_out_of_run(preferences, data, policy.record)
    if held_out is None:
        return preferences, "all pairs of the file"
    if all_pairs:
        return preferences, "all pairs of the file, those it was trained on among them"
    return held_out, "those its run held out (--all-pairs takes all)"


def _warn_of_foreign_reference(policy: "Judged", reference: "Judged") -> None:
    from mlx_dpo.models.parameters import fingerprint

    origin = policy.record.get("trained_from")
    known = origin.get("fingerprint") if isinstance(origin, dict) else None
    if known is not None and known != fingerprint(reference.model):
        click.echo(
            f"warning: {reference.name} is not the model {policy.name} was trained from: rewards "
            "and drift are measured from another place than DPO's",
            err=True,
        )
