"""`mlx_dpo eval`."""

from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import footer, progress
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.screen import say, show_json, show_problems
from mlx_dpo.errors import DataError

if TYPE_CHECKING:
    from mlx_dpo.insight.scoring import LoadedModel
    from mlx_dpo.records import Preference


@click.command(name="eval")
@options.policy
@options.adapter()
@options.reference
@options.path("--data", "Preference pairs, .json or .jsonl.", required=True)
@options.drop_bad
@click.option("--all-pairs", is_flag=True, help="Also use the pairs it was trained on.")
@options.beta_of_run
@options.max_length_of_run
@options.count(
    "--num-prompts",
    about="Prompts both models answer, to measure drift and length; 0 answers none.",
    default=20,
    at_least=0,
)
@options.max_tokens(128)
@options.seed()
@options.as_json
@options.keeps_awake
def evaluate(
    model: str,
    adapter: str | None,
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
    """Evaluate a trained model on held-out pairs, beside the model it was trained from.

    Accuracy by kind and by length, calibration, and drift. Where --data is the file the model was
    trained on, only the pairs its run held out are used. Both models are held in memory; of an
    adapter it is one, which is its own reference with the adapter off.

    \b
    Example:
      mlx_dpo eval --model checkpoints/tiny-sft-dpo --data data/dpo/preferences.json
    """
    from mlx_dpo.cli.results import as_record, print_assessment
    from mlx_dpo.insight.evaluation import assess, setting_of_run
    from mlx_dpo.insight.scoring import Named, open_model, reference_of

    preferences = read_pairs(data, drop_bad)
    named = Named(model, adapter)
    origin = Named(reference) if reference else reference_of(named)
    options.opening(model, adapter, *(origin or ()))
    policy = open_model(*named)
    other = policy.without_adapter() if origin is None else open_model(*origin)
    rows, which = _rows_to_evaluate(preferences, data, policy, all_pairs)
    settings: dict[str, Any] = {
        "beta": beta or setting_of_run(policy.record, "beta"),
        "max_length": max_length or setting_of_run(policy.record, "max_length"),
    }
    if not policy.comes_from(other):
        say(
            f"warning: {other.name} is not the model {policy.name} was trained from: rewards "
            "and drift are measured from another model than in DPO",
            err=True,
        )
    footer.doing("reading the pairs")
    with progress() as advance:
        assessment = assess(
            policy,
            other,
            rows,
            **settings,
            drop_bad=drop_bad,
            num_prompts=num_prompts,
            max_tokens=max_tokens,
            seed=seed,
            progress=advance,
        )
    names = {"model": policy.name, "reference": other.name, "data": data, **settings}
    if as_json:
        show_json(as_record(names, which, assessment))
    else:
        print_assessment(names, which, assessment)


def read_pairs(data: str, drop_bad: bool, *, compare: bool = True) -> "list[Preference]":
    """The pairs of a file, with lines on stderr about rows that are left out for errors.

    Raises:
        UsageError: If there is no such file.
        DataError: If it is another tool's file, has errors and `drop_bad` is off, or no pair of it
            is left.
    """
    from mlx_dpo.preferences.reader import read_preferences
    from mlx_dpo.preferences.schema import Problems, by_code

    refuse_foreign(data)
    problems = Problems()
    preferences = read_preferences(data, problems, drop_bad=drop_bad, compare=compare)
    show_problems(
        problems,
        err=True,
        drop_bad=True,
        errors_only=True,
        rest=f"mlx_dpo data check {data} --log FILE lists all.",
    )
    if not preferences:
        first = problems.shown()[0]
        raise DataError(f"{data}: no pair is left ({by_code(problems.counts)}, such as {first})")
    return preferences


def _rows_to_evaluate(
    preferences: "list[Preference]", data: str, policy: "LoadedModel", all_pairs: bool
) -> "tuple[list[Preference], str]":
    from mlx_dpo.insight.evaluation import held_out_of_run

    held_out = held_out_of_run(preferences, data, policy.record)
    if held_out is None:
        return preferences, "all pairs of the file"
    if all_pairs:
        return preferences, "all pairs of the file, those it was trained on among them"
    return held_out, "those its run held out (--all-pairs takes all)"
