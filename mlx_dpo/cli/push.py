"""`mlx_dpo push`."""

from pathlib import Path

import click

from mlx_dpo.cli import options
from mlx_dpo.cli.screen import say, show_json, table


@click.command(short_help="Upload a finished model or adapter to the hub.")
@click.argument("folder", type=options.Name(path_type=Path))
@click.argument("name", metavar="OWNER/NAME")
@click.option("--public", is_flag=True, help="Let everybody read it. Default: only you.")
@click.option("--dry-run", is_flag=True, help="List the files with their sizes; send nothing.")
@options.as_json
def push(folder: Path, name: str, public: bool, dry_run: bool, as_json: bool) -> None:
    """Upload a folder that `train` or `export` made to a repository of the Hugging Face hub.

    Its weights, configs, tokenizer, model card and record go along, and nothing else: no pairs, and
    in the record no paths and no ids of pairs. The repository is made where it is not there, and is
    private unless --public is given. The token is the one that `hf auth login` has stored.

    \b
    Examples:
      mlx_dpo push checkpoints/tiny-sft-dpo ada/tiny-dpo --dry-run
      mlx_dpo push checkpoints/tiny-sft-dpo ada/tiny-dpo
    """
    from mlx_dpo.runs.push import check_name, files_to_push
    from mlx_dpo.runs.push import push as upload

    check_name(name)
    files, left = files_to_push(folder, name)
    rows = [(file.name, _size(file.size)) for file in files]
    say(table([("file", "size"), *rows, ("all", _size(sum(file.size for file in files)))]))
    if left:
        say(f"left    {', '.join(left)}, in {folder}: not uploaded")
    whom = "public" if public else "private"
    if dry_run:
        address = None
        say(f"nothing was sent; without --dry-run these go to {name}, {whom}")
    else:
        address = upload(files, name, public=public)
        say(f"pushed  {address}  ({whom})")
    if as_json:
        sizes = {file.name: file.size for file in files}
        show_json({"name": name, "files": sizes, "left": left, "public": public, "sent": address})


def _size(count: int) -> str:
    return f"{count:,} bytes"
