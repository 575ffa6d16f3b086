"""Texts of users and models that would take over a terminal: no command lets a control through."""

import ast
import io
import json
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

import mlx_dpo
from mlx_dpo.workshop.label import server
from tests.cli.test_cli import exit_code
from tests.runs.conftest import ORACLE, ROWS
from tests.workshop.judge.bad_endpoint import BadEndpoint, status

# Sets the clipboard, colours, turns the writing direction round, and is a control by itself.
HOSTILE = "\x1b]52;c;cHduZWQ=\x07\x1b[7m\x9b31m\u202ehostile\u2066\u2028\x85\r\x08\x7f\u200b"
NAME = "n" + HOSTILE.replace("\x7f", "")  # which a config.toml can't hold
# What the program itself may write: colours, the cursor, lines that are drawn again.
OURS = re.compile(r"\x1b\[(?!7m)[0-9;]*m|\x1b\[\?25[lh]|\r(?=\x1b)|\x1b\[(?:1A|2K)")
WRITERS = re.compile(
    r"(?:click\.)?s?echo|print|sys\.std(?:out|err)\.write|os\.write|(?:rich\.\w+\.)?Console"
    r"|click\.(?:prompt|confirm|pause|echo_via_pager)"
)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def controls(text: str) -> list[str]:
    """Characters that are more than text, but for what the program itself writes."""
    left = OURS.sub("", text)
    return [c for c in left if unicodedata.category(c)[0] == "C" and c not in "\n\t"]


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which everything has a hostile name and says hostile things."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm-256color")
    for reader in ("runs.callbacks", "insight.sweep"):
        monkeypatch.setattr(f"mlx_dpo.{reader}.ANSWER_TOKENS", 2)
    monkeypatch.setattr(server, "serve", lambda book, *_, announce, **__: announce(NAME))
    shutil.copytree(ORACLE, tmp_path / NAME)
    rows: list[dict[str, object]] = [
        {**row, "id": f"{HOSTILE}{i}", "kind": f"{HOSTILE}{i % 2}"}
        for i, row in enumerate(ROWS[:6])
    ]
    rows[0] |= {"user": HOSTILE, "chosen": HOSTILE, "rejected": f"{HOSTILE}."}
    write("pairs", rows)
    write("bad", [{**rows[0], HOSTILE: 1}, {**rows[1], "chosen": [HOSTILE]}, {HOSTILE: HOSTILE}])
    write(
        "candidates",
        [{"id": HOSTILE, "prompt": HOSTILE, "kind": HOSTILE, "answers": [HOSTILE, "x"]}],
    )
    own = {"text": HOSTILE, "model": NAME}
    write("own", [{"prompt": HOSTILE, "answers": [own, {"text": "x", "model": "y"}]}])
    write("foreign", [{"question": HOSTILE, "good": "x", "bad": HOSTILE, HOSTILE: HOSTILE}] * 2)
    model("model", "config.json", model_type=HOSTILE)
    model("template", "config.json")
    (tmp_path / f"template{NAME}" / "chat_template.jinja").write_text(
        f"{{{{ raise_exception({json.dumps(HOSTILE)}) }}}}"
    )
    model("token", "tokenizer_config.json", eos_token=HOSTILE)
    (tmp_path / f"{NAME}.toml").write_text(json.dumps(HOSTILE) + " = 1\n")
    (tmp_path / f"{NAME}.txt").write_text(HOSTILE.replace("\u2028", ""))
    return tmp_path


def write(name: str, rows: list[dict[str, object]]) -> None:
    Path(f"{name}{NAME}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def model(name: str, part: str, **changes: str) -> None:
    """A copy of the model with other settings."""
    shutil.copytree(ORACLE, f"{name}{NAME}")
    path = Path(f"{name}{NAME}", part)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def file(name: str) -> str:
    return f"{name}{NAME}.jsonl"


ON = ["--model", NAME, "--data", file("pairs")]
COMMANDS = {
    "check": ["data", "check", file("pairs"), "--model", NAME],
    "check bad": ["data", "check", file("bad")],
    "check json": ["data", "check", file("bad"), "--json"],
    "preview": ["data", "preview", file("pairs"), "--model", NAME],
    "split": ["data", "split", file("pairs"), "--out", f"s{NAME}"],
    "filter": ["data", "filter", file("pairs"), "--kind", f"{HOSTILE}1", "--out", f"f{NAME}"],
    "filter none": ["data", "filter", file("pairs"), "--kind", HOSTILE, "--out", f"g{NAME}"],
    "merge": ["data", "merge", file("pairs"), file("pairs"), "--out", f"m{NAME}"],
    "import": [
        *("data", "import", file("foreign"), "--out", f"i{NAME}", "--columns"),
        f"prompt=question,chosen=good,rejected=bad,kind={HOSTILE},id=absent{HOSTILE}",
    ],
    "import nothing": ["data", "import", file("candidates"), "--out", f"j{NAME}"],
    "audit": ["audit", file("pairs")],
    "sample": [
        *("data", "sample", "--model", NAME, "--prompts", file("own"), "--out", f"c{NAME}"),
        *("--max-tokens", "2"),
    ],
    "rule": ["data", "judge", file("own"), "--judge", f"rule:regex:{HOSTILE}", "--out", f"k{NAME}"],
    "no rule": ["data", "judge", file("own"), "--judge", f"rule:{HOSTILE}"],
    "no regex": ["data", "judge", file("own"), "--judge", f"rule:regex:({HOSTILE}"],
    "no judge": ["data", "judge", file("own"), "--judge", f"http://{HOSTILE}"],
    "label": ["data", "label", "--no-open", file("candidates"), file("pairs"), "--out", f"l{NAME}"],
    "train": ["train", *ON, "--steps", "1", "--out", f"o{NAME}", "--run-dir", f"r{NAME}"],
    "no config": ["train", f"{NAME}.toml", *ON],
    "eval": ["eval", "--model", f"o{NAME}", "--data", file("pairs"), "--num-prompts", "0"],
    "score": ["score", "--model", f"o{NAME}", "--prompt", HOSTILE, "--response", HOSTILE],
    "compare": ["compare", f"o{NAME}", NAME, "--prompts", f"{NAME}.txt", "--max-tokens", "2"],
    "report": ["report", f"r{NAME}"],
    "convert": ["convert", NAME, f"v{NAME}"],
    "bad model": ["generate", "--model", f"model{NAME}", "--prompt", "x"],
    "bad template": ["data", "check", file("pairs"), "--model", f"template{NAME}"],
    "bad token": ["data", "preview", file("pairs"), "--model", f"token{NAME}", "--row", "2"],
    "doctor": ["doctor", "--model", f"model{NAME}"],
    "no command": [HOSTILE],
    "no option": ["train", f"--hostile{HOSTILE}"],
    "no number": ["train", "--beta", HOSTILE],
    "no file": ["audit", f"absent{NAME}"],
    "no model": ["generate", "--model", f"absent/{NAME}", "--prompt", "x"],
}
# Commands while the model says nothing else.
SPEAKING = {
    "generate": ["generate", "--model", NAME, "--prompt", "x", "--max-tokens", "2"],
    "compare speaks": COMMANDS["compare"],
    "preview speaks": COMMANDS["preview"],
}


def screen_of(command: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command writes to a terminal."""
    out, err = Terminal(), Terminal()
    with monkeypatch.context() as streams:
        streams.setattr(sys, "stdout", out)
        streams.setattr(sys, "stderr", err)
        exit_code(*command)
    return out.getvalue() + err.getvalue()


def test_no_command_lets_a_control_character_of_a_text_through(
    hostile: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlx_dpo.workshop.judge.endpoint.WAITS", ())
    screens = {name: screen_of(command, monkeypatch) for name, command in COMMANDS.items()}
    said = json.dumps({"error": {"message": HOSTILE}}).encode()
    for code in (401, 500, 200):
        with BadEndpoint(status(code, said)) as server:
            command = ["data", "judge", file("own"), "--judge", server.url, "--out", f"e{NAME}"]
            screens[f"status {code}"] = screen_of([*command, "--model", HOSTILE], monkeypatch)
    with monkeypatch.context() as spoken:
        spoken.setattr(PreTrainedTokenizerBase, "decode", lambda *_, **__: HOSTILE)
        for name, command in SPEAKING.items():
            screens[name] = screen_of(command, monkeypatch)
    elsewhere = capfd.readouterr()  # as a library's warnings are, past the streams of Python
    assert controls(elsewhere.out + elsewhere.err) == []
    found = {name: sorted(set(controls(text))) for name, text in screens.items()}
    assert {name: each for name, each in found.items() if each} == {}
    assert [name for name, text in screens.items() if "hostile" not in text] == []


def test_all_that_is_shown_passes_through_the_screen() -> None:
    package = Path(mlx_dpo.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and WRITERS.fullmatch(ast.unparse(node.func)):
                found.append(str(path.relative_to(package)))
    # A rank's watchdog writes while all else hangs; link.py's output is read by its parent.
    others = {"runs/watchdog.py", "runs/link.py"}
    assert set(found) <= {"__main__.py", "cli/screen.py", "cli/footer.py"} | others
    assert "cli/screen.py" in found
