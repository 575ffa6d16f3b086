"""`mlx_dpo data preview`: one pair as the model sees it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.foreign import refuse_foreign
from mlx_dpo.cli.screen import about_template, say, show_json
from mlx_dpo.errors import DataError

if TYPE_CHECKING:
    from mlx_dpo.preferences.chat import ChatFormat


@click.command(short_help="One pair as the model sees it.")
@click.argument("file", metavar="FILE", type=options.Name())
@options.model("The model whose tokenizer and template are used.")
@options.count("--row", about="Which pair.", default=1)
@options.max_length
@options.as_json
def preview(file: str, model: str, row: int, max_length: int, as_json: bool) -> None:
    """Show one pair as the model sees it: ids, text, and which tokens are scored.

    \b
    Example:
      mlx_dpo data preview data/dpo/preferences.json --model checkpoints/tiny-sft --row 80
    """
    from mlx_dpo.preferences.encoding import CUT, MERGED, PairEncoder
    from mlx_dpo.preferences.reader import read_pair

    refuse_foreign(file)
    pair = read_pair(file, row)
    chat = options.chat_of(model)
    (encoded,) = PairEncoder(chat, max_length)([pair])
    if not encoded.is_kept and encoded.finding is not None:
        code, _, reason, _ = encoded.finding
        raise DataError(f"{file}: row {row} would be dropped: {code}: {reason}")
    for code, _, reason, hint in encoded.notes:
        say(f"warning: {code}: {reason}; {hint}", err=True)
    parts = dict(zip(("prompt", "chosen", "rejected"), encoded.example, strict=True))
    if as_json:
        record = {"file": file, "row": row, "kind": pair.kind, "id": pair.id}
        show_json(record | {name: _tokens(ids, chat) for name, ids in parts.items()})
        return
    say(f"{file} row {row}, kind {pair.kind or '-'}, id {pair.id}")
    if template := about_template(chat):
        say(f"template: {template}")
    say("")
    say("scored   id  token")
    for name, ids in parts.items():
        say(f"{name}: {len(ids)} tokens")
        for token in _tokens(ids, chat):
            say(f"  {int(name != 'prompt')}  {token['id']:>6}  {token['text']!r}")
    say(
        f"\n1: its log-prob counts. {len(parts['chosen'])} chosen and {len(parts['rejected'])} "
        f"rejected tokens are scored, with the closing token {chat.closing_text}."
    )
    if encoded.flags & CUT:
        say("An answer is cut at --max-length.")
    if encoded.flags & MERGED:
        say(
            "The end of the prompt and the beginning of an answer share a token; it is scored with "
            "the answer."
        )


def _tokens(ids: Sequence[int], chat: "ChatFormat") -> list[dict[str, Any]]:
    return [{"id": int(each), "text": chat.tokenizer.decode([each])} for each in ids]
