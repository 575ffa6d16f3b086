"""Every command of every page is understood, and is run here or has a reason why not.

A reason is a comment before the block: `<!-- not run: needs the hub -->`. All other commands run
once, in the order of the pages, in a copy of the clone's data; training and answering are cut short
(`SHORT`). What other tests run in small is left to them (`ELSEWHERE`).
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import click
import pytest

from mlx_dpo.cli import cli, main
from tests.test_docs import PAGES, ROOT

BLOCK = re.compile(r"(?:^<!-- not run: ([^>]*?) -->\n)?^```\w*\n(.*?)^```$", re.M | re.S)
# Lines of the shell (export, source, sudo) are no commands of this project.
WORDS = r"(?:\w+=\S+ )*(mlx_dpo|mlx_lm\.\w+|python|pip|make|\.venv/bin/pip) "

SHORT = {  # what makes a command cheap
    "mlx_dpo train": "--steps 4",
    "mlx_dpo eval": "--num-prompts 1 --max-tokens 4",
    "mlx_dpo compare": "--max-tokens 4",
    "mlx_dpo generate": "--max-tokens 4",
    "mlx_dpo data sample": "--max-tokens 4",
}
ELSEWHERE = {"mlx_dpo sweep": "tests/cli/test_cli_sweep.py"}


class Command(NamedTuple):
    """A line that a page tells a reader to type."""

    where: str
    line: str
    why_not: str  # it is not run

    @property
    def words(self) -> list[str]:
        """The words of the line, without those that set the environment."""
        words = shlex.split(self.line)
        return words[next(i for i, word in enumerate(words) if not re.match(r"\w+=", word)) :]


def commands() -> Iterator[Command]:
    for page in PAGES:
        text = page.read_text("utf-8")
        for block in BLOCK.finditer(text):
            for line in block[2].splitlines():
                line = line.removeprefix("$ ").split("  #")[0].strip() if line[:1] != " " else ""
                if re.match(WORDS, f"{line} ") and line.count('"') % 2 == 0:  # else it goes on
                    where = f"{page.relative_to(ROOT)}:{text[: block.start()].count(chr(10)) + 1}"
                    yield Command(where, line, block[1] or "")


COMMANDS = list(commands())
README = (ROOT / "README.md").read_text("utf-8")


class UnderstoodError(Exception):
    """Raised where an argument parser is content, so that its program does not run."""


def parse(run: Callable[[], Any], argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the `argparse` of a program refuses the words; does not let it do its work."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        parse_args(parser, *args, **kwargs)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(UnderstoodError):
        run()


def understand(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *rest = words
    if program == "mlx_dpo":
        command: click.Command = cli
        while isinstance(command, click.Group) and rest[0] != "--help":
            command = command.commands[rest.pop(0)]
        if rest != ["--help"]:
            command.make_context(command.name, rest).close()
    elif program.startswith("mlx_lm."):
        parse(import_module(program).main, words, monkeypatch)
    elif program == "make":
        assert f"\n{rest[0]}: " in (ROOT / "Makefile").read_text()
    elif program.endswith("pip"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"^\.\[(\w+)\]$", rest[-1]):
            assert extra in extras["optional-dependencies"]
        assert rest[0] in ("install", "uninstall", "download", "wheel")
    elif rest[0] == "-m":
        found = find_spec(rest[1])
        assert found, rest[1]
        source = Path(str(found.origin)).read_text("utf-8")
        if rest[1].split(".")[0] in ("tools", "benchmarks", "tests") and "argparse" in source:
            parse(import_module(rest[1]).main, rest[1:], monkeypatch)
    else:
        assert (ROOT / rest[0]).is_file()


@pytest.mark.parametrize("line", sorted({command.line for command in COMMANDS}))
def test_a_documented_command_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = next(command.words for command in COMMANDS if command.line == line)
    if words[0] == "mlx_lm.evaluate":
        pytest.importorskip("lm_eval", reason="it is no dependency of this project")
    understand(words, monkeypatch)


def test_a_command_with_an_unknown_option_is_not_understood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(click.UsageError):
        understand(["mlx_dpo", "train", "--rank", "3"], monkeypatch)
    with pytest.raises(SystemExit):
        understand(["mlx_lm.chat", "--adapter", "x", "--no-such"], monkeypatch)


def leaves(command: click.Command, *words: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for word, child in command.commands.items():
            yield from leaves(child, *words, word)
    else:
        yield " ".join(words)


@pytest.mark.parametrize("words", list(leaves(cli)))
def test_every_command_has_an_example_in_the_documents(words: str) -> None:
    assert [c for c in COMMANDS if f"{c.line} ".startswith(f"mlx_dpo {words} ")]


def test_the_tests_that_a_reason_names_are_there() -> None:
    assert all((ROOT / path).is_file() for path in ELSEWHERE.values())
    for command in COMMANDS:
        for path in re.findall(r"\b(?:tests|docs)/[\w./-]*\w", command.why_not):
            assert (ROOT / path).exists(), f"{command.where}: {path}"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a clone holds for its commands, and a few prompts."""
    for folder in ("checkpoints", "data", "tests/workshop/importers/data"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*-dpo*"))
    (tmp_path / "prompts.txt").write_text("I am late.\nWhat does a baker do?\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: Command, capsys: pytest.CaptureFixture[str]) -> str:
    """What went wrong, or nothing."""
    if command.words[0] == "python":
        words = [sys.executable, *command.words[1:]]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else ""
    words = command.words[1:]
    for start, short in SHORT.items():
        if command.line.startswith(start) and "--help" not in words:
            words += short.split()
    if "--steps" in words and "--epochs" in words:  # only one of them may be given
        at = words.index("--epochs")
        del words[at : at + 2]
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr()
    return (shown.out + shown.err)[-400:] if ended.value.code else ""


@pytest.mark.pages
def test_every_command_of_the_pages_runs(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = [c for c in COMMANDS if not c.line.startswith(tuple(ELSEWHERE))]
    demo = Command("Makefile", "mlx_dpo train", "")
    to_run = {c.line: c for c in (demo, *here) if not c.why_not}
    assert {c.words[0] for c in to_run.values()} == {"mlx_dpo", "python"}
    # The first ones make what others read.
    first = ("mlx_dpo train", *(line for line in to_run if "--out checkpoints/tiny-lora" in line))
    for line in (*first, *(line for line in to_run if line not in first)):
        wrong = run(to_run[line], capsys)
        assert not wrong, f"{to_run[line].where}: {line}\n{wrong}"


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S))
@pytest.mark.usefixtures("clone")
def test_the_library_works_as_the_readme_shows_it(
    block: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("0.6931")
