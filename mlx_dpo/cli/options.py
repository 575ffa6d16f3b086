"""Options that several commands share. Those of a run's settings are made from `RunConfig`."""

from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click

from mlx_dpo.errors import UsageError
from mlx_dpo.files import check_writable, flaw_of_name
from mlx_dpo.runs.config import RunConfig, option_type

Decorator = Callable[[Any], Any]

_SETTINGS: "dict[str, Field[Any]]" = {setting.name: setting for setting in fields(RunConfig)}
# Settings without a meaning for a command that throws its steps away.
OF_A_SAVED_RUN = (
    *("out", "overwrite", "run_dir", "eval_every", "save_every", "sample_every", "log_every"),
    *("allow_sleep", "skip_nonfinite"),
)


class Name(click.Path):
    """A path; a hub id too, where a model may stand. A text that can be no path is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`."""
        flaw = flaw_of_name(value)
        if flaw:
            self.fail(f"{flaw}.", param, ctx)
        return super().convert(value, param, ctx)


def config_options(*left_out: str) -> Decorator:
    """The argument CONFIG, and an option for each setting of a run but those left out.

    They have no default: what is not typed is None, and comes from CONFIG or `RunConfig`.
    """

    def add(command: Any) -> Any:
        for setting in reversed(_SETTINGS.values()):
            if setting.name not in left_out:
                command = _option_of(setting)(command)
        return click.argument("config", required=False, type=Name(path_type=Path))(command)

    return add


def typed(options: dict[str, Any]) -> dict[str, Any]:
    """The settings that were typed, of those from `config_options`."""
    return {name: value for name, value in options.items() if value is not None}


def path_option(name: str, about: str, *, metavar: str = "FILE", **rules: Any) -> Decorator:
    """An option that names a file or, with that metavar, a FOLDER."""
    return click.option(name, **{"metavar": metavar, "type": Name(), "help": about, **rules})


def model_option(about: str = "A model folder or hub id.", *, required: bool = True) -> Decorator:
    """The option ``--model``."""
    return path_option("--model", about, metavar="FOLDER", required=required)


def out_option(about: str, *, default: str | None = None) -> Decorator:
    """The option ``--out``, a file; required where it has no default."""
    return path_option(
        "--out",
        about,
        type=Name(dir_okay=False),
        default=default,
        required=default is None,
        show_default=default is not None,
    )


def count_option(*names: str, about: str, default: int, at_least: int = 1) -> Decorator:
    """An option that is a whole number."""
    return click.option(
        *names,
        type=click.IntRange(min=at_least),
        default=default,
        show_default=True,
        help=about,
    )


def max_tokens_option(default: int, about: str = "Longest answer, in tokens.") -> Decorator:
    """The option ``--max-tokens``."""
    return count_option("--max-tokens", about=about, default=default)


def seed_option(about: str = "Decides what is sampled.") -> Decorator:
    """The option ``--seed``."""
    return count_option("--seed", about=about, default=0, at_least=0)


def setting_of_run_option(name: str, about: str) -> Decorator:
    """A setting whose default is that of the run that made the model."""
    return click.option(
        _flag(name),
        type=_range(name),
        help=f"{about} [default: the run's own, else {_SETTINGS[name].default}]",
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _range(name: str) -> click.IntRange | click.FloatRange:
    """The numbers that a setting may have."""
    rules = _SETTINGS[name].metadata
    if option_type(name) is int:
        return click.IntRange(min=rules["at_least"])
    return click.FloatRange(min=rules["above"], min_open=True)


def _option_of(setting: "Field[Any]") -> Decorator:
    kind = option_type(setting.name)
    choices = setting.metadata.get("choices")
    unset = setting.default is None or kind is bool
    shown = "" if unset else f" [default: {setting.default}]"
    value: dict[str, Any] = {"type": click.Choice(choices) if choices else kind}
    if not choices:
        value["metavar"] = _metavar(setting.name, kind)
    return click.option(
        _flag(setting.name),
        default=None,
        help=setting.metadata["help"] + shown,
        **{"is_flag": True} if kind is bool else value,
    )


def _metavar(name: str, kind: type) -> str:
    if name == "memory_budget":
        return "SIZE"
    if kind is str:
        return "FOLDER" if name in ("model", "out", "run_dir") else "FILE"
    return "NUMBER" if kind is float else "N"


policy_option = model_option("The trained model (policy).")
reference_option = path_option(
    "--reference",
    "The model it was trained from. Default: the one its dpo.json names.",
    metavar="FOLDER",
)
max_length_option = click.option(
    "--max-length",
    type=_range("max_length"),
    default=RunConfig.max_length,
    show_default=True,
    help=_SETTINGS["max_length"].metadata["help"],
)
beta_of_run_option = setting_of_run_option("beta", "Scale of the rewards.")
max_length_of_run_option = setting_of_run_option(
    "max_length", _SETTINGS["max_length"].metadata["help"]
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object, for machines.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace a file that is there.")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Find out before any work whether a file may and can be written.

    Raises:
        UsageError: If it is there and may not be replaced.
        DiskError: If it can't be written.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: is there already; give another --out, or --overwrite")
    check_writable(path)
