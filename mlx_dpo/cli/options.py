"""A parameter that names a file or a folder."""

from typing import Any

import click

from mlx_dpo.files import flaw_of_name


class Name(click.Path):
    """A path; a hub id too, where one may stand. What no path can be is refused on the spot."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`."""
        flaw = flaw_of_name(value)
        if flaw:
            self.fail(f"{flaw}.", param, ctx)
        return super().convert(value, param, ctx)
