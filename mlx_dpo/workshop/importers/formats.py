"""The shapes of other people's preference data, and which of them a row has.

A format turns a row of a source into rows with this project's keys (``prompt``, ``chosen``,
``rejected``, ``kind``), which the preference reader then checks. A row that can't be a pair is left
out with a reason, never guessed.
"""

from typing import Any

from mlx_dpo.workshop.importers import chosen, labelled, open_webui, rankings, votes
from mlx_dpo.workshop.importers.chosen import DIALOGUES
from mlx_dpo.workshop.importers.fields import Fields, Format, first_of

# In the order in which a row is tried: the most particular shape first.
FORMATS = {
    known.name: known
    for known in (
        rankings.TREE,
        open_webui.OPEN_WEBUI,
        chosen.OPENAI,
        votes.SUMMARIES,
        votes.FINE_GRAINED,
        votes.WEBGPT,
        votes.SHP,
        votes.PKU,
        votes.PKU_SAFER,
        votes.HELPSTEER,
        votes.ARENA,
        votes.ARENA_TABLE,
        chosen.STEP,
        chosen.COLUMNAR,
        chosen.LLAMA_FACTORY,
        chosen.SWIFT,
        rankings.RANKED,
        rankings.SCORED,
        chosen.HH,
        chosen.COLUMNS,
        chosen.TRL,
        votes.VOTES,
        rankings.LISTS,
        labelled.KTO,
        labelled.RATED,
    )
}


def detect(row: Any) -> Format | None:
    """The format of a row; None if the shape is not known."""
    if not isinstance(row, dict):
        return None
    return next((known for known in FORMATS.values() if known.fits(row)), None)


def what_is_missing(row: Fields) -> str:
    """What to make of a row whose shape is not known, in a few words."""
    if rankings.is_undecided(row):
        return (
            "it holds candidates, and no choice has been made yet: `mlx_dpo data label` or "
            "`mlx_dpo data judge` makes pairs of them"
        )
    beside = rankings.numbers_beside(row)
    if beside is not None:
        return (
            f"it has a number for each answer in {beside!r}: --columns scores={beside} where the "
            f"highest is the best, or ranks={beside} where the lowest is; answers must be texts"
        )
    for name, value in row.items():
        if isinstance(value, list) and value and detect(value[0]) is not None:
            return f"it holds rows in {name!r}; write those alone, as a JSON array or JSON lines"
    one = first_of(row, (*DIALOGUES[:4], "completion", "output", "response", "answer"))
    if one is not None and not any("chosen" in name or "reject" in name for name in row):
        return (
            "it seems to hold one answer and no verdict; `mlx_dpo data sample` and `mlx_dpo data "
            "judge` make pairs of prompts"
        )
    return (
        "name the columns of the pair: --columns prompt=COLUMN,chosen=COLUMN,rejected=COLUMN, or "
        "a --format"
    )
