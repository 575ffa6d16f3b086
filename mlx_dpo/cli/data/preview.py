"""`mlx_dpo data preview`: one pair as the model sees it."""

import click

from mlx_dpo.cli import options
from mlx_dpo.errors import DataError


@click.command(short_help="One pair as the model sees it.")
@click.argument("file", metavar="FILE", type=options.Name())
@options.model("Whose tokenizer and template.")
@options.count("--row", about="Which pair.", default=1)
@options.max_length
def preview(file: str, model: str, row: int, max_length: int) -> None:
    """Show one pair as the model sees it: ids, text, and which tokens are scored.

    \b
    Example:
      mlx_dpo data preview data/dpo/preferences.json --model checkpoints/tiny-sft --row 80
    """
    from mlx_dpo.preferences.encoding import encode_preferences
    from mlx_dpo.preferences.reader import read_preferences

    preferences = read_preferences(file)
    if row > len(preferences):
        raise DataError(f"{file}: has {len(preferences)} pairs, there is no row {row}")
    chosen_row = preferences[row - 1]
    chat = options.chat_of(model)
    encoded = encode_preferences([chosen_row], chat, max_length=max_length)
    if not encoded.examples:
        raise DataError(f"{file}: row {row} would be dropped: {next(iter(encoded.dropped))}")
    prompt, chosen, rejected = encoded.examples[0]
    click.echo(f"{file} row {row}, kind {chosen_row.kind or '-'}, id {chosen_row.id}\n")
    click.echo("scored   id  token")
    for name, ids, scored in (
        ("prompt", prompt, 0),
        ("chosen", chosen, 1),
        ("rejected", rejected, 1),
    ):
        click.echo(f"{name}: {len(ids)} tokens")
        for token in ids:
            click.echo(f"  {scored}  {token:>6}  {chat.tokenizer.decode([token])!r}")
    click.echo(
        f"\n1 = its log-prob counts. {len(chosen)} chosen and {len(rejected)} rejected tokens are "
        f"scored, the closing token {chat.closing_text} among them; "
        f"{encoded.num_cut} cut, {encoded.num_merged} merged at the boundary."
    )
