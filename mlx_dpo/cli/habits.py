"""Option and command names of other trainers, turned into those of this program."""

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from mlx_dpo.errors import UsageError
from mlx_dpo.runs.config_file import content_of
from mlx_dpo.runs.foreign import DECIDING, OF_BATCHES, SAME, VALUED
from mlx_dpo.runs.habits import accumulation, counts_batches, is_foreign, is_switch
from mlx_dpo.runs.habits import ours as in_our_words

# Of commands that take no settings of a run.
_OTHERS = {
    **{"adapter_path": "adapter", "max_new_tokens": "max_tokens", "dataset": "data"},
    **{"temp": "temperature", "dataset_name": "data", "model_name_or_path": "model"},
    **{"upload_repo": "name", "save_path": "out", "output": "out", "n": "answers"},
}
# Of single commands: what takes the place of options that they do not have.
_REFUSED = {
    ("convert", "-q"): "mlx_dpo export MODEL OUT --quantize 4 packs a model",
    ("convert", "--quantize"): "mlx_dpo export MODEL OUT --quantize 4 packs a model",
    ("convert", "--hf-path"): "write the two folders alone: mlx_dpo convert SRC DST",
    ("convert", "--mlx-path"): "write the two folders alone: mlx_dpo convert SRC DST",
    ("export", "-q"): "--quantize 4 packs in 4 bits",
    ("export", "--q-bits"): "--quantize 4 packs in 4 bits",
    ("export", "--format"): "--to says what it is for: --to gguf",
    ("export", "--model"): "write the two folders alone: mlx_dpo export MODEL OUT",
}
_COMMANDS = {
    "chat": "mlx_lm.chat --model FOLDER talks to a model",
    "serve": "mlx_lm.server --model FOLDER serves a model",
    "server": "mlx_lm.server --model FOLDER serves a model",
    "label": "mlx_dpo data label",
    "import": "mlx_dpo data import",
    "judge": "mlx_dpo data judge",
    "sample": "mlx_dpo data sample",
    "dpo": "mlx_dpo train",
    "lora": "mlx_dpo train --method lora",
    "sft": "this program trains on pairs only; mlx_lm.lora makes an SFT model",
    "finetune": "mlx_dpo train",
    "fuse": "mlx_dpo export ADAPTER OUT --fuse",
    "merge": "mlx_dpo export ADAPTER OUT --fuse",
    "quantize": "mlx_dpo export MODEL OUT --quantize 4",
    "evaluate": "mlx_dpo eval",
    "test": "mlx_dpo eval",
    "infer": "mlx_dpo generate",
    "run": "mlx_dpo train",
    "init": "no config file is needed; mlx_dpo train --help lists the settings",
    "preprocess": "mlx_dpo data check",
    "inference": "mlx_dpo generate",
    "merge-lora": "mlx_dpo export ADAPTER OUT --fuse",
    **dict.fromkeys(
        ("kto", "orpo", "grpo", "cpo", "reward"),
        "DPO is the only method: mlx_dpo train",
    ),
}
_TRUE, _FALSE = ("true", "True", "1", "yes", "unsloth"), ("false", "False", "0", "no")


def translated(
    args: list[str], root: click.Group, tell: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Arguments with the names that options have here; those that are ours stay as they are.

    Args:
        args: As typed.
        root: The command line.
        tell: Called with a line about options that are not taken as they were typed.

    Raises:
        UsageError: If a name is known from elsewhere and has no counterpart, or no command is
            given first.
    """
    command: click.Command = root
    depth = 0
    while isinstance(command, click.Group) and depth < len(args):
        word = args[depth]
        if word not in command.commands:
            _check_first(word, command is root, _options(root.commands["train"]))
            return args
        command, depth = command.commands[word], depth + 1
    for word in args[depth:]:
        name = word.partition("=")[0]
        if hint := _REFUSED.get((str(command.name), name.replace("_", "-"))):
            raise UsageError(f"{name}: {hint}")
    return [*args[:depth], *_renamed(args[depth:], _options(command), tell)]


def _check_first(word: str, is_first: bool, of_train: dict[str, click.Option]) -> None:
    """Refuse what is known to stand for a command of ours, or for one that was left out."""
    if is_first and word in _COMMANDS:
        raise UsageError(f"no command {word!r} here: {_COMMANDS[word]}")
    is_foreign_name = is_foreign(_key(word)) or _flag(_key(word)) in of_train
    if is_first and is_foreign_name and word not in ("--help", "--version"):
        raise UsageError(f"a command comes first: mlx_dpo train {word} ...")


def _options(command: click.Command) -> dict[str, click.Option]:
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def _renamed(
    words: list[str], options: dict[str, click.Option], tell: Callable[[str], None]
) -> list[str]:
    of_a_run, rest = "--learning-rate" in options, deque(words)
    kept: list[str] = []
    foreign: dict[str, Any] = {}
    while rest:
        word = rest.popleft()
        if word == "--":
            kept += [word, *rest]
            break
        key = _key(word)
        is_other = (is_foreign(key) and _flag(key) not in options) or key in (*VALUED, *DECIDING)
        if of_a_run and is_other and (found := _value(word, rest, options)) is not None:
            foreign[key] = found
        else:
            kept += _spelled(word, rest, options, SAME if of_a_run else _OTHERS)
    return [*kept, *_counterparts(foreign, kept, options, tell)]


def _key(word: str) -> str:
    """The setting that an option's name stands for; empty where it is no long option."""
    name = word.partition("=")[0]
    return name[2:].replace("-", "_") if name.startswith("--") else ""


def _spelled(
    word: str, rest: deque[str], options: dict[str, click.Option], names: dict[str, str]
) -> list[str]:
    """An option as it is spelled here; what is no option of ours stays, and click refuses it."""
    name, is_joined, value = word.partition("=")
    if names is SAME and name in ("-c", "--config"):
        return [value] if is_joined else [rest.popleft()] if rest else [word]
    key = _key(word)
    flag = next(
        (_flag(each) for each in (key, names.get(key, key)) if _flag(each) in options), None
    )
    if name in options or flag is None:
        return [word]
    if options[flag].is_flag:
        return [flag] if _is_on(word, rest) else []
    return [f"{flag}={value}" if is_joined else flag]


def _value(word: str, rest: deque[str], options: dict[str, click.Option]) -> Any:
    """The value of a foreign option; None where there is none."""
    _, is_joined, value = word.partition("=")
    key = _key(word)
    setting = SAME.get(key, key)
    if is_switch(key) or ((ours := options.get(_flag(setting))) and ours.is_flag):
        return _is_on(word, rest)
    if is_joined:
        return value
    values: list[str] = []
    while rest and (not values or (setting == "lora_modules" and not rest[0].startswith("-"))):
        values.append(rest.popleft())
    return ",".join(values) if values else None


def _counterparts(
    foreign: dict[str, Any],
    kept: list[str],
    options: dict[str, click.Option],
    tell: Callable[[str], None],
) -> Iterator[str]:
    """The words to put for options that are not spelled as ours are."""
    names = {option[2:].replace("-", "_") for option in options}
    is_of_file = _add_of_file(foreign, kept)
    settings, notes = in_our_words(foreign, names, _flag)
    for note in notes:
        tell(f"warning: {note}")
    typed = {_flag(_key(word)) for word in kept if _key(word)}
    for key, value in settings.items():
        flag = _flag(key)
        if flag in typed:
            raise UsageError(f"{flag} is given twice")
        if is_of_file and key == "grad_accumulation":
            continue
        if value is True or (flag in options and options[flag].is_flag):
            yield from [flag] if value else []
        else:
            yield f"{flag}={value}"


def _add_of_file(foreign: dict[str, Any], kept: list[str]) -> bool:
    """Add the accumulation of the config file where typed options count its batches.

    Returns:
        Whether it was added.

    Raises:
        UsageError: If accumulation is typed and the file counts batches.
    """
    files = [Path(word) for word in kept if word.endswith((".toml", ".yaml", ".yml"))]
    typed, counted = accumulation(foreign), counts_batches(foreign)
    if not files or not files[-1].is_file() or (typed is None and not counted):
        return False
    content = content_of(files[-1])
    of_file = accumulation(content)
    if typed is None:
        foreign |= {} if of_file is None else {"grad_accumulation": of_file}
        return of_file is not None
    here = {*(SAME.get(name, name) for name in foreign), *map(_key, kept)}
    still = [name for name in counts_batches(content) if OF_BATCHES[name] not in here]
    if still and str(typed) != str(of_file or 1):
        raise UsageError(
            f"{files[-1]}: {', '.join(still)}: mlx-lm counts batches: give the accumulation in "
            f"the file too, or type {', '.join(_flag(OF_BATCHES[name]) for name in still)}"
        )
    return False


def _is_on(word: str, rest: deque[str]) -> bool:
    """Whether a switch is on; some programs write a word behind it."""
    _, is_joined, value = word.partition("=")
    if not is_joined and rest and rest[0] in (*_TRUE, *_FALSE):
        value = rest.popleft()
    return value not in _FALSE


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"
