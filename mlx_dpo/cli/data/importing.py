"""`mlx_dpo data import`: other people's preference files into one of our own."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.footer import share_progress
from mlx_dpo.cli.screen import (
    counted,
    say,
    show_account,
    show_json,
    show_ways_on,
    show_written,
)
from mlx_dpo.errors import UsageError

if TYPE_CHECKING:
    from mlx_dpo.workshop.importers.reading import Summary

NAMES = (
    *("auto", "hh-rlhf", "trl", "columns", "scored", "ranked", "lists", "tree", "openai", "swift"),
    *("llama-factory", "kto", "rated", "open-webui", "shp", "pku-saferlhf", "pku-safer"),
    *("helpsteer", "arena", "arena-table", "votes", "webgpt", "summaries", "fine-grained"),
    *("step-dpo", "columnar"),
)
_MEANINGS = ("prompt", "chosen", "rejected", "system", "history", "kind", "completion", "label")
_SHOWN_COLUMNS = 12


@click.command("import", short_help="Public data sets and other tools' files to pairs.")
@click.argument("source", metavar="SOURCE", type=options.Name())
@options.out("The file of pairs to write.", default="preferences.jsonl")
@click.option(
    "--format",
    "name",
    type=click.Choice(NAMES),
    metavar="FORMAT",
    default="auto",
    show_default=True,
    help="Format of the rows; auto detects it for each row and reports what it found.",
)
@click.option(
    "--columns",
    metavar="NAME=COLUMN,...",
    help=f"Columns to read under other names: {', '.join(_MEANINGS)}.",
)
@click.option(
    "--pairs",
    type=click.Choice(("best-worst", "all")),
    default="best-worst",
    show_default=True,
    help="How a ranking or scores become pairs.",
)
@click.option("--files", metavar="PATTERN", help="Which files of a folder or hub data set.")
@options.overwrite
@options.as_json
def import_(
    source: str,
    out: str,
    name: str,
    columns: str | None,
    pairs: str,
    files: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Turn a data set into a checked file of pairs.

    SOURCE is a file (.json, .jsonl, .csv, .tsv, .parquet; .gz is unpacked), a folder of such, or
    the hub id of a data set. Rows that can't be pairs are left out, counted and shown, never
    guessed; columns that are not used are named.

    \b
    Formats:
      trl, columns    prompt (or question, instruction, none), chosen, rejected; Tulu, UltraFeedback
      hh-rlhf         transcripts "\\n\\nHuman: ... \\n\\nAssistant: ..." that share their prompt
      openai          input, preferred_output, non_preferred_output
      swift           ms-swift: messages, rejected_response
      llama-factory   conversations, chosen, rejected; or output: [better, worse]
      kto, rated      an answer a row with a label or rating, paired by prompt; HelpSteer
      open-webui      the export of feedback
      scored, ranked  completions: [{text, score}, ...], answers: [{answer, rank}, ...]; Nectar
      lists, tree     responses and scores side by side; OpenAssistant's trees
      arena, arena-table, votes        two answers and a winner
      shp, pku-saferlhf, pku-safer, helpsteer, webgpt, summaries, fine-grained, step-dpo
      columnar        one object whose columns are lists

    \b
    Examples:
      mlx_dpo data import harmless-base.jsonl.gz --out pairs.jsonl
      mlx_dpo data import HuggingFaceH4/ultrafeedback_binarized --files "*train_prefs*"
      mlx_dpo data import votes.csv --columns prompt=ask,chosen=good,rejected=bad
    """
    from mlx_dpo.preferences.schema import Problems
    from mlx_dpo.workshop.collection import Collection
    from mlx_dpo.workshop.importers.reading import collect, open_rows
    from mlx_dpo.workshop.importers.sources import find_files

    path = Path(out)
    options.refuse_existing(path, overwrite)
    sources = find_files(source, files)
    renamed, found, notes = _columns(columns), set[str](), Counter[str]()
    shape, rows, shown_by = open_rows(sources, name, renamed, found, notes)
    detected = f", detected from row {shown_by}" if shown_by else ""
    say(f"source  {source}" + (f"  ({len(sources)} files)" if len(sources) > 1 else ""))
    say(f"format  {shape.name}: {shape.about}{detected}")
    with Collection(Problems()) as collection:
        with share_progress("reading") as progress:
            summary = collect(
                rows,
                shape,
                collection,
                each=name == "auto",
                all_pairs=pairs == "all",
                progress=progress,
            )
        summary.notes.update(notes)
        _show_summary(summary)
        for column in sorted(set(renamed.values()) - found):
            say(f"warning: --columns: no row has a column {column!r}", err=True)
        account = show_account(collection, source)
        written = show_written(path, collection.write(path, replace=overwrite))
    show_ways_on(path)
    if as_json:
        show_json({"source": source, **vars(summary), **account, "written": [written]})


def _columns(text: str | None) -> dict[str, str]:
    """Columns of the source by their new names."""
    columns: dict[str, str] = {}
    for part in text.split(",") if text else []:
        new, sign, old = (word.strip() for word in part.partition("="))
        if not sign or not new or not old:
            raise UsageError(f"--columns {text}: expected NAME=COLUMN, as in prompt=question")
        columns[new] = old
    return columns


def _show_summary(summary: "Summary") -> None:
    if len(summary.shapes) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in summary.shapes.most_common())
        say(f"shapes  {counts}")
    if summary.unused:
        ordered = sorted(summary.unused.items(), key=lambda item: (-item[1], item[0]))
        shown = ordered[:_SHOWN_COLUMNS]
        names = ", ".join(f"{column} ({counted(count, 'row')})" for column, count in shown)
        more = len(ordered) - len(shown)
        rest = f" and {counted(more, 'column')} more" if more else ""
        say(f"unused  {names}{rest}; --columns NAME=COLUMN gives one a meaning")
    for note, count in sorted(summary.notes.items()):
        say(f"note    {counted(count, 'row')}: {note}")
