"""`mlx_dpo data filter`: leave pairs out of a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.data.merge import rework_to
from mlx_dpo.cli.evaluate import read_pairs
from mlx_dpo.cli.footer import progress
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.runs.config import RunConfig

if TYPE_CHECKING:
    from mlx_dpo.records import Preference


class Share(click.ParamType[float]):
    """A share: 5% or 0.05, above 0 and below 1."""

    name = "share"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """The share as a number, 0 to 1."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            self.fail(f"{value!r}: expected a share, as 5% or 0.05", param, ctx)
        return share


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
@click.option(
    "--drop-ches",
    "alike",
    type=Share(),
    metavar="SHARE",
    help="Leave out this share of the pairs, as 5%: those with answers that look most alike.",
)
@options.model(
    "Count lengths in this model's tokens, not in characters; score with it (--drop-ches).",
    required=False,
)
@click.option("--kind", "kinds", multiple=True, help="Keep only pairs of this kind; repeatable.")
@click.option("--unique", is_flag=True, help="Leave out repeated pairs.")
@options.overwrite
@options.as_json
def filter_(
    file: str,
    out: str,
    ratio: float | None,
    alike: float | None,
    model: str | None,
    kinds: tuple[str, ...],
    unique: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Leave pairs out, and show how many for each reason.

    A model that is trained on pairs in which the longer answer mostly wins learns to write more.
    --max-length-ratio 2 keeps only pairs whose answers are within twice each other's length. A
    model that is trained on pairs with nearly the same answers may lower the chosen one as well:
    --drop-ches 5% leaves out those that look most alike to the model (mlx_dpo audit --ches shows
    them).

    \b
    Examples:
      mlx_dpo data filter pairs.jsonl --max-length-ratio 2 --out even.jsonl
      mlx_dpo data filter pairs.jsonl --drop-ches 5% --model path/to/sft-model --out clear.jsonl
    """
    from mlx_dpo.workshop.collection import PairFilter, all_but, length_ratio, not_again, of_kinds

    filters: list[PairFilter] = []
    if kinds:
        filters.append(of_kinds(kinds))
    if ratio is not None:
        filters.append(length_ratio(ratio, options.chat_of(model) if model else None))
    if unique:
        filters.append(not_again())
    if alike is not None and model is None:
        raise click.UsageError("--drop-ches takes --model: the model that is to be trained")
    if not (filters or alike) or (model and ratio is None and alike is None):
        is_for = "--model is for --max-length-ratio and --drop-ches"
        what = is_for if filters or model else "nothing to filter by"
        raise click.UsageError(f"{what}; give --max-length-ratio, --drop-ches, --kind or --unique")
    refuse_foreign(file)
    if alike is not None and model is not None:
        options.refuse_existing(Path(out), overwrite)  # before the model is loaded
        filters.append(all_but(_most_alike(file, alike, model), "ches"))
    rework_to([file], Path(out), filters, overwrite=overwrite, as_json=as_json)


def _most_alike(file: str, share: float, model: str) -> "list[Preference]":
    from mlx_dpo.insight.ches import score_file

    preferences = read_pairs(file, drop_bad=True)
    options.opening(model)
    with progress() as advance:
        scored = score_file(model, preferences, max_length=RunConfig.max_length, progress=advance)
    return [scored.preferences[row] for row in scored.most_alike(share)]
