"""`mlx_dpo data filter`: leave pairs out of a file."""

from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.data.merge import rework_to
from mlx_dpo.cli.foreign import refuse_foreign


@click.command("filter", short_help="Leave out pairs by length or kind.")
@click.argument("file", metavar="FILE", type=options.Name())
@options.out("The file of pairs to write.")
@click.option(
    "--max-length-ratio",
    "ratio",
    type=click.FloatRange(min=1),
    metavar="R",
    help="Leave out pairs with one answer more than R times as long as the other.",
)
@options.model("Count lengths in this model's tokens, not in characters.", required=False)
@click.option("--kind", "kinds", multiple=True, help="Keep only pairs of this kind; repeatable.")
@click.option("--unique", is_flag=True, help="Leave out repeated pairs.")
@options.overwrite
@options.as_json
def filter_(
    file: str,
    out: str,
    ratio: float | None,
    model: str | None,
    kinds: tuple[str, ...],
    unique: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Leave pairs out, and show how many for each reason.

    A model that is trained on pairs in which the longer answer mostly wins learns to write more.
    --max-length-ratio 2 keeps only pairs whose answers are within twice each other's length.

    \b
    Example:
      mlx_dpo data filter pairs.jsonl --max-length-ratio 2 --out even.jsonl
    """
    from mlx_dpo.workshop.collection import PairFilter, length_ratio, not_again, of_kinds

    filters: list[PairFilter] = []
    if kinds:
        filters.append(of_kinds(kinds))
    if ratio is not None:
        filters.append(length_ratio(ratio, options.chat_of(model) if model else None))
    if unique:
        filters.append(not_again())
    if not filters or (model and ratio is None):
        what = "--model is for --max-length-ratio" if filters or model else "nothing to filter by"
        raise click.UsageError(f"{what}; give --max-length-ratio, --kind or --unique")
    refuse_foreign(file)
    rework_to([file], Path(out), filters, overwrite=overwrite, as_json=as_json)
