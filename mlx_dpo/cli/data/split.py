"""`mlx_dpo data split`: a file of pairs into training and test pairs."""

from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import share_progress
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.screen import show_account, show_json, show_next, show_written
from mlx_dpo.errors import DataError


@click.command(short_help="Training and test pairs, no prompt in both.")
@click.argument("file", metavar="FILE", type=options.Name())
@click.option(
    "--test",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of each kind's prompts that goes to the test pairs.",
)
@options.seed("Random seed; decides which prompts are test prompts.")
@options.path(
    "--out",
    "Write PREFIX.train.jsonl and PREFIX.test.jsonl.  [default: FILE without its ending]",
    metavar="PREFIX",
)
@options.overwrite
@options.as_json
def split(
    file: str, test: float, seed: int, out: str | None, overwrite: bool, as_json: bool
) -> None:
    """Split a file of pairs so that no prompt is in both parts.

    The test pairs get the same share of each kind's prompts, at least one; a kind with a single
    prompt stays in training.

    \b
    Example:
      mlx_dpo data split pairs.jsonl --test 0.1 --seed 0
      mlx_dpo train --model MODEL --data pairs.train.jsonl --eval-data pairs.test.jsonl
    """
    from mlx_dpo.preferences.schema import Problems
    from mlx_dpo.preferences.split import held_out_rows
    from mlx_dpo.workshop.collection import Collection, rework

    prefix = Path(file).with_suffix("") if out is None else Path(out)
    paths = [prefix.with_name(f"{prefix.name}.{side}.jsonl") for side in ("train", "test")]
    for path in paths:
        options.refuse_existing(path, overwrite)
    refuse_foreign(file)
    with Collection(Problems()) as collection:
        with share_progress("reading") as progress:
            rework([Path(file)], collection, progress=progress)
        account = show_account(collection, file)
        holds = collection.holds()
        known = zip(collection.prompts, collection.kinds, holds, strict=True)
        chosen = iter(held_out_rows(((p, kind) for p, kind, held in known if held), test, seed))
        is_test = [held and next(chosen) for held in holds]
        if not any(is_test):
            raise DataError(f"{file}: every kind has a single prompt; there is nothing to split")
        parts = []
        for path, side in zip(paths, (False, True), strict=True):
            written = collection.write(
                path,
                lambda row, side=side: is_test[row] == side,  # type: ignore[misc]
                replace=overwrite,
            )
            parts.append(show_written(path, written))
    train, held_out = map(str, paths)
    show_next(["train", "--model", "FOLDER", "--data", train, "--eval-data", held_out])
    if as_json:
        show_json({**account, "written": parts})
