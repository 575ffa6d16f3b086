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


for _command in (check, preview, import_, sample, judge, label, filter_, merge, split):
    data.add_command(_command)
