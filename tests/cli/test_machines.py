"""What a script gets: --json is one object on stdout, --quiet leaves stderr to warnings, errors."""

import io
import json
from pathlib import Path
from typing import Any

import click
import pytest
from rich.console import Console

from mlx_dpo.cli import cli
from mlx_dpo.cli.footer import Footer, footer
from mlx_dpo.cli.screen import say
from tests.cli.conftest import run
from tests.cli.test_options import COMMANDS
from tests.runs.conftest import ORACLE

# What prints no table and no figures, and has no --json.
TEXT = {
    "generate": "an answer",
    "report": "a page, and where it is",
    "data label": "a page to work on",
}
MODEL = ["--model", str(ORACLE)]
PAIRS = ["data", "split", "pairs.json", "--test", "0.3"]
# Commands that build on each other, and what their objects hold.
SCRIPT: list[tuple[list[str], set[str]]] = [
    (PAIRS, {"read", "kept", "dropped", "pairs", "written"}),
    (["data", "merge", "pairs.train.jsonl", "--out", "m.jsonl"], {"read", "written"}),
    (["data", "filter", "m.jsonl", "--unique", "--out", "f.jsonl"], {"read", "written"}),
    (["data", "import", "m.jsonl", "--out", "i.jsonl"], {"source", "shapes", "unused", "written"}),
    (["data", "check", "i.jsonl"], {"read", "errors", "first"}),
    (["data", "preview", "i.jsonl", *MODEL], {"prompt", "chosen", "rejected"}),
    (["audit", "pairs.json"], {"pairs", "checks"}),
    (
        ["data", "sample", *MODEL, "--prompts", "p.txt", "--max-tokens", "2"],
        {"prompts", "answers", "cut", "choice", "written"},
    ),
    (
        ["data", "judge", "c.jsonl", "--judge", "rule:shorter", "--out", "j.jsonl"],
        {"prompts", "outcomes", "longer_winners", "written"},
    ),
    (
        ["train", *MODEL, "--data", "pairs.json", "--steps=1", "--out=out", "--run-dir=run"],
        {"trained", "run", "out", "verdict", "groups", "answers", "totals", "report"},
    ),
    (["train", "--resume", "--run-dir", "run"], {"trained", "run"}),
    (["push", "out", "ada/tiny", "--dry-run"], {"name", "files", "left", "public", "sent"}),
    (["export", "out", "e", "--to", "mlx", "--dtype", "float32"], {"out", "to", "dtype", "proof"}),
]


def test_every_command_that_shows_figures_has_json() -> None:
    """A new command has --json, or is named above with what it prints instead."""
    without = {
        name
        for name, command in COMMANDS.items()
        if "as_json" not in {p.name for p in command.params}
    }
    assert without == TEXT.keys()


def test_every_command_can_be_quiet() -> None:
    for name, command in COMMANDS.items():
        words = {word for p in command.params for word in p.opts} & {"-q", "--quiet"}
        packs = name in ("convert", "adapter convert", "export")  # -q packs in mlx_lm.convert
        assert words == ({"--quiet"} if packs else {"-q", "--quiet"}), name


def test_a_script_gets_one_object_on_stdout_and_silence_on_stderr(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("p.txt").write_text("Hello\nWho is there?\n")
    Path("c.jsonl").write_text(
        '{"prompt": "Hi", "answers": [{"text": "Hello."}, {"text": "No way."}]}\n'
    )
    for words, keys in SCRIPT:
        code, out, err = run(capsys, *words, "--json", "--quiet")
        assert code == 0, (words, err)
        record: dict[str, Any] = json.loads(out)
        assert keys <= record.keys(), words
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert lines == [], words
    code, out, err = run(capsys, "data", "check", "absent.json", "--json", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith("mlx_dpo: absent.json: no such file")


def test_json_sends_lines_for_people_to_stderr(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, err = run(capsys, *PAIRS, "--json")
    assert json.loads(out)["kept"] == 14
    assert "rows    14 read = 14 kept" in err
    _, out, _ = run(capsys, *PAIRS, "--overwrite")
    assert out.startswith("rows    14 read = 14 kept")  # the next command is as it was


def test_quiet_draws_nothing_and_lets_warnings_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    mine = Footer(Console(file=screen, force_terminal=True, width=80))
    mine.is_quiet = True
    mine.doing("loading")
    mine.bar("step 1/2", 1, 2)
    assert (mine.is_shown, screen.getvalue()) == (False, "")
    monkeypatch.setattr(footer, "is_quiet", True)
    footer.doing("planning", log=True)
    for line in ("model  m", "warning: mind", "left out: a.json: row 1", "mlx_dpo: no"):
        say(line, err=True)
    say("a result")
    shown = capsys.readouterr()
    assert shown.err == "warning: mind\nleft out: a.json: row 1\nmlx_dpo: no\n"
    assert shown.out == "a result\n"


def test_a_question_on_the_screen_is_not_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    code, _, err = run(capsys, "compare", "a", "b", "--blind", "-q")
    assert code == 2
    assert "leave --quiet out" in err


def test_the_state_of_a_command_ends_with_it() -> None:
    with cli.commands["audit"].make_context("audit", ["x.json", "-q", "--json"]):
        assert (footer.is_quiet, footer.keeps_stdout) == (True, True)
    assert (footer.is_quiet, footer.keeps_stdout) == (False, False)
    context = click.Context(cli.commands["audit"], resilient_parsing=True)
    cli.commands["audit"].parse_args(context, ["x.json", "-q"])
    assert not footer.is_quiet  # while a shell completes words
