"""Every option that a command accepts is used: by the syntax tree, from the command on down."""

import ast
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import mlx_dpo
from mlx_dpo.cli import cli
from mlx_dpo.runs.config import RunConfig

PACKAGE = Path(mlx_dpo.__file__).parent
SETTINGS = {setting.name for setting in fields(RunConfig)}
Definition = ast.FunctionDef | ast.ClassDef


class Module(NamedTuple):
    """Its functions and classes by name, and what each imported name stands for."""

    definitions: dict[str, Definition]
    imports: dict[str, tuple[str, str]]


@cache
def module_of(name: str) -> Module | None:
    path = PACKAGE.joinpath(*name.split(".")[1:])
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    if not file.is_file():
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mlx_dpo")
        for alias in node.names
    }
    return Module({n.name: n for n in tree.body if isinstance(n, Definition)}, imports)


def used_definitions(name: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of whatever a definition mentions, calls or imports."""
    module = module_of(name)
    assert module is not None
    for each in ast.walk(node):
        if isinstance(each, ast.Name) and each.id in module.definitions:
            yield name, each.id
        elif isinstance(each, ast.Name) and each.id in module.imports:
            yield module.imports[each.id]
        elif isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
            parent, child = module.imports.get(each.value.id, ("", ""))
            yield f"{parent}.{child}", each.attr


def reached(name: str, function: str) -> list[Definition]:
    """A function and all functions and classes of this project that it may come to."""
    seen: dict[tuple[str, str], Definition] = {}
    todo = [(name, function)]
    while todo:
        key = todo.pop()
        module = module_of(key[0])
        if key in seen or module is None:
            continue
        if key[1] in module.definitions:
            seen[key] = module.definitions[key[1]]
            todo += used_definitions(key[0], seen[key])
        elif key[1] in module.imports:
            todo.append(module.imports[key[1]])
    return list(seen.values())


def settings_read(command: click.Command) -> set[str]:
    """Settings that a command, or what it calls, reads of an object named config or settings."""
    assert command.callback is not None
    return {
        node.attr
        for definition in reached(command.callback.__module__, command.callback.__name__)
        for node in ast.walk(definition)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and ast.unparse(node.value).split(".")[-1].split("_")[-1] in ("config", "settings")
    }


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_accepted_and_ignored(name: str) -> None:
    command = COMMANDS[name]
    assert command.callback is not None
    module = module_of(command.callback.__module__)
    assert module is not None
    function = module.definitions[command.callback.__name__]
    assert isinstance(function, ast.FunctionDef)
    named = {arg.arg for arg in function.args.args}
    loaded = {n.id for s in function.body for n in ast.walk(s) if isinstance(n, ast.Name)}
    accepted = {each.name for each in command.params if each.name and each.expose_value}
    assert named - loaded == set(), "parameters that the command never looks at"
    settings = accepted - named
    assert settings <= SETTINGS
    assert settings - settings_read(command) == set(), "settings that nothing reads"


def test_the_walk_sees_which_settings_a_command_reads() -> None:
    """`profile` shares nearly all code with `train` and `plan`, but keeps no memory budget."""
    assert "memory_budget" in settings_read(COMMANDS["train"])
    assert "memory_budget" not in settings_read(COMMANDS["profile"])
    assert "learning_rate" in settings_read(COMMANDS["profile"])
    assert "beta" not in settings_read(COMMANDS["audit"])


def test_defaults_of_settings_stand_in_the_settings_alone() -> None:
    for file in [*PACKAGE.glob("cli/**/*.py"), *PACKAGE.glob("insight/audit/*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant):
                assert node.value != RunConfig.max_length, f"{file}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "held_out":
                assert not any(isinstance(arg, ast.Constant) for arg in node.args), file
