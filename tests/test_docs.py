"""What the documents tell a reader to type exists."""

import re
import shlex
from pathlib import Path

import click
import pytest

from mlx_dpo.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
COMMANDS = sorted(
    {
        line.split("  #")[0]
        for page in PAGES
        for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S)
        for line in block.splitlines()
        if line.startswith("mlx_dpo ")
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_command_is_understood(line: str) -> None:
    command: click.Command = cli
    words = shlex.split(line)[1:]
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_documented_file_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 4
