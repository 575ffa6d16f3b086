"""`mlx_dpo data import`: other people's preference files into one of our own."""

from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.screen import share_progress, show_account, show_written

NAMES = ("auto", "hh-rlhf", "trl", "columns", "scored", "tree")


@click.command("import", short_help="Public data sets and other tools' files to pairs.")
@click.argument("source", metavar="SOURCE", type=options.Name())
@options.out("The file of pairs to write.", default="preferences.jsonl")
@click.option(
    "--format",
    "name",
    type=click.Choice(NAMES),
    default="auto",
    show_default=True,
    help="Shape of the rows; auto says which it found.",
)
@click.option(
    "--pairs",
    type=click.Choice(("best-worst", "all")),
    default="best-worst",
    show_default=True,
    help="What a ranking or scores become.",
)
@click.option("--files", metavar="PATTERN", help="Which files of a folder or hub data set.")
@options.overwrite
def import_(
    source: str, out: str, name: str, pairs: str, files: str | None, overwrite: bool
) -> None:
    """Turn a data set into a checked file of pairs.

    SOURCE is a file (.json, .jsonl, .csv, .parquet; .gz is unpacked), a folder of such, or the hub
    id of a data set. Rows that can't be pairs are left out, counted and shown, never guessed.

    \b
    Formats:
      hh-rlhf   transcripts "\\n\\nHuman: ... \\n\\nAssistant: ..." that share their prompt
      trl       prompt (or none), chosen, rejected: texts or messages; UltraFeedback-binarized
      columns   question | instruction | input, system, chosen_response ... (Argilla, Intel orca)
      scored    prompt, completions: [{text, score}, ...]
      tree      OpenAssistant's conversation trees with ranked replies

    \b
    Examples:
      mlx_dpo data import harmless-base.jsonl.gz --out pairs.jsonl
      mlx_dpo data import HuggingFaceH4/ultrafeedback_binarized --files "*train_prefs*"
    """
    from mlx_dpo.preferences.schema import Problems
    from mlx_dpo.workshop.collection import Collection
    from mlx_dpo.workshop.importers.reading import collect, open_rows
    from mlx_dpo.workshop.importers.sources import find_files

    path = Path(out)
    options.refuse_existing(path, overwrite)
    sources = find_files(source, files)
    shape, rows, shown_by = open_rows(sources, name)
    detected = f", detected from row {shown_by}" if shown_by else ""
    click.echo(f"source  {source}" + (f"  ({len(sources)} files)" if len(sources) > 1 else ""))
    click.echo(f"format  {shape.name}: {shape.about}{detected}")
    with Collection(Problems()) as collection:
        with share_progress("reading") as progress:
            collect(rows, shape, collection, all_pairs=pairs == "all", progress=progress)
        show_account(collection, source)
        written = collection.write(path, replace=overwrite)
    show_written(path, written)
