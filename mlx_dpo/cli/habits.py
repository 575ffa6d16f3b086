"""What people type who come from other trainers, as this program calls it."""

from collections import deque
from collections.abc import Iterator

import click

from mlx_dpo.errors import UsageError
from mlx_dpo.runs.habits import MEANS, SAME, refusal

# Of commands that take no settings of a run.
_OTHERS = {"adapter_path": "adapter", "max_new_tokens": "max_tokens", "dataset": "data"}
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
}
_TRUE, _FALSE = ("true", "True", "1", "yes"), ("false", "False", "0", "no")


def translated(args: list[str], root: click.Group) -> list[str]:
    """Arguments with the names that options have here; those that are ours stay as they are.

    Args:
        args: As typed.
        root: The command line.

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
    return [*args[:depth], *_renamed(args[depth:], _options(command))]


def _check_first(word: str, is_first: bool, of_train: dict[str, click.Option]) -> None:
    """Refuse what is known to stand for a command of ours, or for one that was left out."""
    if is_first and word in _COMMANDS:
        raise UsageError(f"no command {word!r} here: {_COMMANDS[word]}")
    if is_first and word.partition("=")[0] in of_train.keys() - {"--help", "--version"}:
        raise UsageError(f"a command comes first: mlx_dpo train {word} ...")


def _options(command: click.Command) -> dict[str, click.Option]:
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}


def _renamed(words: list[str], ours: dict[str, click.Option]) -> Iterator[str]:
    of_a_run, rest = "--learning-rate" in ours, deque(words)
    while rest:
        word = rest.popleft()
        name = word.partition("=")[0]
        if word == "--":
            yield from (word, *rest)
            return
        if of_a_run and name in ("-c", "--config"):
            yield from _value(word, rest)
        elif not name.startswith("--") or name in ours or name == "--help":
            yield word
        else:
            yield from _counterpart(word, rest, ours, of_a_run)


def _counterpart(
    word: str, rest: deque[str], ours: dict[str, click.Option], of_a_run: bool
) -> Iterator[str]:
    """The words to put for an option that is not spelled as ours are."""
    name, is_joined, value = word.partition("=")
    key = name[2:].replace("-", "_")
    if of_a_run and (reason := refusal(key, _flag)):
        raise UsageError(f"{name}: {reason}")
    if of_a_run and key in MEANS:
        setting, means = MEANS[key]
        yield from (_flag(setting), means) if _is_on(word, rest) else ()
        return
    same = SAME if of_a_run else _OTHERS
    flag = _flag(key) if _flag(key) in ours else _flag(same.get(key, ""))
    if flag not in ours:
        yield word  # click says that there is no such option
    elif not ours[flag].is_flag:
        yield f"{flag}={value}" if is_joined else flag
    elif _is_on(word, rest):
        yield flag


def _value(word: str, rest: deque[str]) -> list[str]:
    """The value of an option: behind its equals sign, or the next word."""
    _, is_joined, value = word.partition("=")
    return [value] if is_joined else [rest.popleft()] if rest else [word]


def _is_on(word: str, rest: deque[str]) -> bool:
    """Whether a switch is on; some programs write a word behind it."""
    _, is_joined, value = word.partition("=")
    if not is_joined and rest and rest[0] in (*_TRUE, *_FALSE):
        value = rest.popleft()
    return value not in _FALSE


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"
