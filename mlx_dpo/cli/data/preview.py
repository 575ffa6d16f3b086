"""`mlx_dpo data preview`: one pair as the model sees it."""

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.screen import about_template, printable
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
    from mlx_dpo.preferences.encoding import CUT, MERGED, PairEncoder
    from mlx_dpo.preferences.reader import read_pair

    pair = read_pair(file, row)
    chat = options.chat_of(model)
    (encoded,) = PairEncoder(chat, max_length)([pair])
    if not encoded.is_kept and encoded.finding is not None:
        code, _, reason, _ = encoded.finding
        raise DataError(f"{file}: row {row} would be dropped: {code}: {reason}")
    for code, _, reason, hint in encoded.notes:
        click.echo(f"warning: {code}: {reason}; {hint}", err=True)
    prompt, chosen, rejected = encoded.example
    click.echo(f"{file} row {row}, kind {pair.kind or '-'}, id {pair.id}")
    if template := about_template(chat):
        click.echo(printable(f"template: {template}"))
    click.echo("")
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
        f"{int(bool(encoded.flags & CUT))} cut, {int(bool(encoded.flags & MERGED))} merged at the "
        "boundary."
    )
