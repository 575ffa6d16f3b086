"""Commands on a real (pseudo-)terminal: each line fits, bars leave nothing, a stop notice stays."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mlx_dpo.cli import cli
from mlx_dpo.cli.screen import fitted, table
from tests.runs.conftest import ORACLE
from tools.picture import run_on_terminal, screen_of

WIDTHS = (60, 80, 120)
MODEL = ["--model", str(ORACLE)]
DATA = ["--data", "pairs.json"]
COMMANDS = [
    ["train", *MODEL, *DATA, "--steps", "2", "--out", "out", "--overwrite"],
    ["train", *MODEL, *DATA, "--steps", "2", "--dry-run", "-v", "--beta", "0.9"],
    ["data", "check", "pairs.json", *MODEL, "--max-length", "40"],
    ["audit", "pairs.json"],
    ["eval", "--model", "out", *DATA, "--num-prompts", "1", "--max-tokens", "4"],
    ["score", "--model", "out", "--prompt", "Hi", "--response", "No. " * 30, "--per-token"],
    ["compare", str(ORACLE), "out", "--prompts", "questions.txt", "--max-tokens", "20"],
    ["generate", "--model", "out", "--prompt", "Tell me more.", "--max-tokens", "40"],
    ["plan", *MODEL, *DATA],
    ["data", "check", "absent.json"],
]
QUIET = ["audit", "pairs.json", "-q"]
SLOW = [
    ["score", "--model", "out", *DATA],
    ["sweep", *MODEL, *DATA, "--steps=1", "--run-dir=s", "--num-prompts=1", "--beta=0.1"],
]
# Runs all commands in one process, since each would import for seconds.
ALL = """
import fcntl, json, struct, sys, termios
from mlx_dpo.cli import main

for width, commands in json.loads(sys.argv[1]):
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    for command in commands:
        print(f"@@@ {width}", command[0], flush=True)
        try:
            main(command)
        except SystemExit as end:
            print("@@@ ended", end.code, flush=True)
"""


def all_commands(command: click.Command, name: str = "mlx_dpo") -> Iterator[tuple[str, str]]:
    """Name and help text of a command and those below it."""
    with command.make_context(name, ["--help"] * 0, resilient_parsing=True) as context:
        yield name, command.get_help(context)
    if isinstance(command, click.Group):
        for below, inner in command.commands.items():
            yield from all_commands(inner, f"{name} {below}")


def too_wide(lines: list[str], width: int) -> list[str]:
    """Lines that do not fit, but for those of one long word, as of a path or a quoted prompt."""
    return [line for line in lines if len(line) > width and longest_word(line) < width // 2]


def longest_word(line: str) -> int:
    whole = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace(" ", "_"), line)
    return max(map(len, whole.split()))


def words(text: str) -> list[str]:
    return [word for word in text.split() if word != "\\"]


def test_every_help_fits_a_terminal_and_breaks_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for width in (*WIDTHS, 1000):
        size = os.terminal_size((width, 24))
        monkeypatch.setattr("mlx_dpo.cli.shutil.get_terminal_size", lambda size=size: size)
        shown[width] = dict(all_commands(cli))
    assert len(shown[80]) > 20
    for width in WIDTHS:
        for name, text in shown[width].items():
            assert not too_wide(text.splitlines(), width), name
            assert words(text) == words(shown[1000][name]), name


@pytest.mark.pages
def test_every_screen_fits_and_bars_leave_nothing(workplace: Path) -> None:
    Path("questions.txt").write_text("Why is the sky blue, and why is it dark at night?\nHi\n")
    work = [(60, COMMANDS), (80, [*SLOW, *COMMANDS[2:5]]), (120, [*COMMANDS[2:4], QUIET])]
    script = [sys.executable, "-c", ALL, json.dumps(work)]
    code, written = run_on_terminal(script, 80)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in screen_of(written)]
    assert code == 0, lines[-3:]
    codes = [line.split()[2] for line in lines if line.startswith("@@@ ended")]
    assert codes == ["0"] * 9 + ["2"] + ["0"] * 8, lines
    quiet = written.rpartition("@@@ 120")[2]
    assert "ok" in quiet
    assert "starting" not in quiet
    assert "reading" not in quiet
    width, seen = 0, set()
    for line in lines:
        if begun := re.match(r"@@@ (\d+) ", line):
            width = int(begun[1])
            seen.add(width)
        assert not too_wide([line], width), line
        assert "\u2501" not in line  # a bar
    assert seen == set(WIDTHS)


@pytest.mark.pages
def test_that_a_run_is_stopping_stays_on_the_screen(workplace: Path) -> None:
    """A line beside the bar was painted over within a third of a second."""
    stopped: list[int] = []

    def stop(written: bytes, process: int) -> None:
        if re.search(rb"step \d+/", written) and not stopped:
            stopped.append(process)
            os.kill(process, signal.SIGINT)

    train = [sys.executable, "-m", "mlx_dpo", "train", *MODEL, *DATA, "--steps", "2000"]
    code, written = run_on_terminal(train, 80, react=stop)
    shown = "\n".join(screen_of(written))
    assert code == 75
    assert shown.count("stopping after this batch; a second time stops at once") == 1
    assert "mlx_dpo: stopped after step" in shown


def test_text_that_goes_on_stands_below_the_text_after_its_label() -> None:
    text = "settings    beta 0.1, learning rate 0.0004, batch 4\nwarning: a long line of text\none"
    assert fitted(text, 40).split("\n") == [
        "settings    beta 0.1, learning rate",
        "            0.0004, batch 4",
        "warning: a long line of text",
        "one",
    ]
    assert fitted("  a/mlx_dpo generate --model x --prompt 'Who is there?'", 44).split("\n") == [
        "  a/mlx_dpo generate --model x \\",
        "    --prompt 'Who is there?'",
    ]
    assert fitted("x " + "y" * 50, 40).split("\n") == ["x", "y" * 50]


def test_a_narrow_table_leaves_out_what_matters_least(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["kind", "pairs", "right", "chosen", "rejected"], ["arithmetic", "5", "1", "2", "3"]]
    monkeypatch.setattr("mlx_dpo.cli.screen.terminal_width", lambda: 24)
    spare = (("chosen", "rejected"),)
    assert table(rows, spare=spare).split("\n") == [
        "kind        pairs  right",
        "arithmetic      5      1",
    ]
    monkeypatch.setattr("mlx_dpo.cli.screen.terminal_width", lambda: 20)
    assert table(rows, spare=spare).split("\n")[1] == "arith\u2026      5      1"
