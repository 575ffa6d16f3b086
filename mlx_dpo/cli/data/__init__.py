"""`mlx_dpo data`: the preference workshop. The group; a file per command."""

import click

from mlx_dpo.cli.data.check import check
from mlx_dpo.cli.data.filter import filter_
from mlx_dpo.cli.data.importing import import_
from mlx_dpo.cli.data.judge import judge
from mlx_dpo.cli.data.label import label
from mlx_dpo.cli.data.merge import merge
from mlx_dpo.cli.data.preview import preview
from mlx_dpo.cli.data.sample import sample
from mlx_dpo.cli.data.split import split


@click.group()
def data() -> None:
    """Make, import and look at preference data."""


data.add_command(check)
data.add_command(preview)
data.add_command(import_)
data.add_command(sample)
data.add_command(judge)
data.add_command(label)
data.add_command(filter_)
data.add_command(merge)
data.add_command(split)
