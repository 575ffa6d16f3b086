"""Options that several commands share: `options.seed()` is ``--seed``.

Those of a run's settings, their defaults and their help are made from `RunConfig`.
"""

import os
from collections.abc import Callable
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlx_dpo.cli.footer import footer
from mlx_dpo.cli.screen import say
from mlx_dpo.errors import UsageError
from mlx_dpo.files import check_writable
from mlx_dpo.paths import flaw_of_name
from mlx_dpo.runs.config import RunConfig, option_type
from mlx_dpo.runs.config_file import read_file

if TYPE_CHECKING:
    from mlx_dpo.preferences.chat import ChatFormat

Decorator = Callable[[Any], Any]

_SETTINGS: "dict[str, Field[Any]]" = {setting.name: setting for setting in fields(RunConfig)}
# Settings without a meaning for a command that throws its steps away.
OF_A_SAVED_RUN = (
    *("out", "overwrite", "run_dir", "eval_every", "save_every", "sample_every", "log_every"),
    *("allow_sleep", "skip_nonfinite", "adapter_format", "keep", "best_by", "patience"),
    "report_to",
)


_METAVARS = {"memory_budget": "SIZE", "date": "DATE", "lora_modules": "NAMES", "report_to": "NAMES"}


class Name(click.Path):
    """A path; a hub id too, where a model may stand. A text that can be no path is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType.convert`."""
        flaw = flaw_of_name(value)
        if flaw:
            self.fail(f"{flaw}.", param, ctx)
        return super().convert(value, param, ctx)


def config(*left_out: str) -> Decorator:
    """The argument CONFIG, and an option for each setting of a run but those left out.

    They have no default: what is not typed is None, and comes from CONFIG or `RunConfig`.
    """

    def add(command: Any) -> Any:
        for setting in reversed(_SETTINGS.values()):
            if setting.name not in left_out:
                command = _option_of(setting)(command)
        return click.argument("config", required=False, type=Name(path_type=Path))(command)

    return add


def warn_of_unused(config: Path) -> None:
    """Name the settings of other trainers in a config file that a run does not take as given."""
    _, notes = read_file(config, _SETTINGS)
    for note in notes:
        say(f"warning: {config}: {note}", err=True)


def typed(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that were typed, of those from `config`."""
    return {name: value for name, value in settings.items() if value is not None}


def path(name: str, about: str, *, metavar: str = "FILE", **rules: Any) -> Decorator:
    """An option that names a file or, with that metavar, a FOLDER."""
    return click.option(name, **{"metavar": metavar, "type": Name(), "help": about, **rules})


def model(
    about: str = "A model folder or hub id, or a trained adapter.", *, required: bool = True
) -> Decorator:
    """``--model``."""
    return path("--model", about, metavar="FOLDER", required=required)


def adapter(about: str = "An adapter, mlx-lm's or PEFT's, to put onto --model.") -> Decorator:
    """``--adapter``."""
    return path("--adapter", about, metavar="FOLDER")


def out(about: str, *, default: str | None = None) -> Decorator:
    """``--out``, a file; required where it has no default."""
    return path(
        "--out",
        about,
        type=Name(dir_okay=False),
        default=default,
        required=default is None,
        show_default=default is not None,
    )


def count(*names: str, about: str, default: int, at_least: int = 1) -> Decorator:
    """An option that is a whole number."""
    kind = click.IntRange(min=at_least)
    return click.option(*names, type=kind, default=default, show_default=True, help=about)


def max_tokens(default: int, about: str = "Longest answer, in tokens.") -> Decorator:
    """``--max-tokens``."""
    return count("--max-tokens", about=about, default=default)


def seed(about: str = "Random seed of the sampling.") -> Decorator:
    """``--seed``."""
    return count("--seed", about=about, default=0, at_least=0)


def _of_run(name: str, about: str) -> Decorator:
    """A setting whose default is that of the run that made the model."""
    shown = f"{about} [default: the run's own, else {_SETTINGS[name].default}]"
    return click.option(_flag(name), type=_range(name), help=shown)


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
    if "is_list" in setting.metadata:  # with commas between, or given several times
        value |= {"multiple": True, "callback": lambda _, __, values: ",".join(values) or None}
    return click.option(
        _flag(setting.name),
        default=None,
        help=setting.metadata["help"] + shown,
        **{"is_flag": True} if kind is bool else value,
    )


def _metavar(name: str, kind: type) -> str:
    if name in _METAVARS:
        return _METAVARS[name]
    if kind is str:
        return "FOLDER" if name in ("model", "out", "run_dir", "adapter") else "FILE"
    return "NUMBER" if kind is float else "N"


_LENGTH: str = _SETTINGS["max_length"].metadata["help"]

verbose = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="More lines, for work on the engine: docs/training.md of the repository.",
)


def _begin(context: click.Context, _: click.Parameter, is_quiet: bool) -> None:
    """Show that a command starts, unless it is to be quiet."""
    if context.resilient_parsing:
        return  # a shell completes words
    if is_quiet:
        footer.is_quiet = True
        context.call_on_close(lambda: setattr(footer, "is_quiet", False))
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    footer.doing("starting")  # the imports of a command take seconds


def _keep_stdout(context: click.Context, _: click.Parameter, as_json: bool) -> bool:
    """Send lines for people to stderr."""
    if as_json:
        footer.keeps_stdout = True
        context.call_on_close(lambda: setattr(footer, "keeps_stdout", False))
    return as_json


def quiet(*short: str) -> Decorator:
    """``--quiet``, of every command; none takes its value."""
    return click.option(
        *short,
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_begin,
        help="On stderr only warnings and errors: no status, no bars.",
    )


as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    callback=_keep_stdout,
    help="One JSON object on stdout, for machines.",
)
drop_bad = click.option(
    "--drop-bad",
    is_flag=True,
    help="Skip and count rows with errors, as train --drop-bad does.",
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace an existing file.")
policy = model("The trained model (policy), or adapter.")
reference = path(
    "--reference",
    "The model it was trained from. Default: the one its dpo.json names; of an adapter the same "
    "weights without it.",
    metavar="FOLDER",
)
max_length = click.option(
    "--max-length",
    type=_range("max_length"),
    default=RunConfig.max_length,
    show_default=True,
    help=_LENGTH,
)
max_length_of_run = _of_run("max_length", _LENGTH)
beta_of_run = _of_run("beta", "Scale of the rewards.")


def refuse_existing(file: Path, overwrite: bool) -> None:
    """Find out before any work whether ``--out`` may and can be written.

    Raises:
        UsageError: If it is there and may not be replaced.
        DiskError: If it can't be written.
    """
    if file.exists() and not overwrite:
        raise UsageError(f"{file}: already exists; give another --out, or --overwrite")
    check_writable(file)


def keeps_awake(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command for whose whole time a Mac does not sleep."""

    @wraps(command)
    def awake(*args: Any, **options: Any) -> Any:
        from mlx_dpo.runs.machine import keep_awake

        with keep_awake():
            return command(*args, **options)

    return awake


def is_at_hand(model: str) -> bool:
    """Whether a model is on this disk, as a folder or in the cache of the hub."""
    if Path(model).exists():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return True  # it is refused soon


def opening(*models: str | None) -> None:
    """Show that models are being loaded; a download shows bars of its own."""
    names = list(dict.fromkeys(filter(None, models)))
    if all(map(is_at_hand, names)):
        footer.doing(f"loading {' and '.join(names)}")
    else:
        footer.clear()


def chat_of(model: str, adapter: str | None = None) -> "ChatFormat":
    """Tokenizer and chat template of ``--model``; weights are not read.

    Of a model or adapter that a run made, the template gets that run's date.
    """
    from mlx_dpo.convert.sources import date_of, load_tokenizer, locate
    from mlx_dpo.preferences.chat import chat_format

    return chat_format(load_tokenizer(model), date_of(locate(model, adapter).origin))
