"""Every path a command takes, given as what it is not: one line, the right code, nothing made."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mlx_dpo.cli import cli, main
from mlx_dpo.cli.options import Name
from mlx_dpo.workshop.label import server
from tests.runs.conftest import ROWS

pytestmark = pytest.mark.survival

MODEL = str(Path(__file__).parents[2] / "checkpoints" / "tiny-sft")
ON = ["--model", MODEL, "--data", "pairs.json"]
BETWEEN = ["--model", MODEL, "--reference", MODEL]
CODES = {1, 2, 3, 7}  # of a mistake in what was asked: docs/training.md, "Exit codes"

NOWHERE = {"no name": "", "huge": "x" * 5000, "nul": "a\0b", "under a file": "./noise.json/child"}
NOTHING = NOWHERE | {"a pipe": "pipe", "a device": "/dev/zero"}
NO_FILE = NOTHING | {
    "missing": "./absent.json",
    "a folder": "folder",
    "empty": "empty.json",
    "noise": "noise.json",
    "Latin-1": "latin.json",
    "UTF-16": "utf16.json",
}
# An empty file is a config without a setting.
NO_CONFIG = {name: path for name, path in NO_FILE.items() if name != "empty"}
NO_FOLDER = NOTHING | {"missing": "./absent", "a file": "noise.json", "an empty folder": "folder"}
# What is to be written may be missing; what is there may not be replaced.
NO_NEW_FILE = NOTHING | {"a folder": "folder", "there": "noise.json"}
NO_NEW_FOLDER = NOTHING | {"a file": "noise.json", "there": "mine"}
NO_PLACE = {name: NO_NEW_FILE[name] for name in NOTHING}

# The command up to the slot, what goes wrong in the slot, and what follows it.
Row = tuple[list[str], dict[str, str], list[str]]
ROWS_OF: dict[str, Row] = {
    "train config": (["train"], NO_CONFIG, ON),
    "train model": (["train", "--data", "pairs.json", "--model"], NO_FOLDER, []),
    "train data": (["train", "--model", MODEL, "--data"], NO_FILE, []),
    "train eval_data": (["train", *ON, "--eval-data"], NO_FILE, []),
    "train out": (["train", *ON, "--out"], NO_NEW_FOLDER, []),
    "train adapter": (["train", *ON, "--adapter"], NO_FOLDER, []),
    "train hosts": (["train", *ON, "--hosts"], NO_FILE, []),
    "plan hosts": (["plan", *ON, "--hosts"], NO_FILE, []),
    "doctor hosts": (["doctor", "--hosts"], NO_FILE, []),
    "train run_dir": (["train", *ON, "--run-dir"], NO_NEW_FOLDER, []),
    "sweep config": (["sweep"], NO_CONFIG, ON),
    "sweep model": (["sweep", "--data", "pairs.json", "--model"], NO_FOLDER, []),
    "sweep data": (["sweep", "--model", MODEL, "--data"], NO_FILE, []),
    "sweep eval_data": (["sweep", *ON, "--eval-data"], NO_FILE, []),
    "sweep adapter": (["sweep", *ON, "--run-dir", "s", "--adapter"], NO_FOLDER, []),
    "sweep run_dir": (["sweep", *ON, "--run-dir"], NO_PLACE | {"a file": "noise.json"}, []),
    "convert src": (["convert"], NO_FOLDER, ["new"]),
    "convert dst": (["convert", MODEL], NO_NEW_FOLDER, []),
    "export model": (["export", "--fuse"], NO_FOLDER, ["new"]),
    "export out": (["export", "--fuse", "adapter"], NO_NEW_FOLDER, []),
    "export base": (["export", "--fuse", "adapter", "new", "--base"], NO_FOLDER, []),
    "export data": (["export", "--fuse", "adapter", "new", "--data"], NO_FILE, []),
    "adapter convert src": (["adapter", "convert"], NO_FOLDER, ["new", "--to", "peft"]),
    "adapter convert dst": (["adapter", "convert", MODEL], NO_NEW_FOLDER, ["--to", "peft"]),
    "adapter convert model": (
        ["adapter", "convert", "folder", "new", "--to", "peft", "--model"],
        NO_FOLDER,
        [],
    ),
    "generate model": (["generate", "--prompt", "Hi", "--model"], NO_FOLDER, []),
    "generate adapter": (
        ["generate", "--prompt", "Hi", "--model", MODEL, "--adapter"],
        NO_FOLDER,
        [],
    ),
    "doctor model": (["doctor", "--json", "--model"], NO_FOLDER, []),
    "audit data": (["audit"], NO_FILE, []),
    "audit model": (["audit", "pairs.json", "--model"], NO_FOLDER, []),
    "audit eval_data": (["audit", "pairs.json", "--eval-data"], NO_FILE, []),
    "eval model": (["eval", "--data", "pairs.json", "--model"], NO_FOLDER, []),
    "eval adapter": (["eval", *ON, "--adapter"], NO_FOLDER, []),
    "eval reference": (["eval", *ON, "--reference"], NO_FOLDER, []),
    "eval data": (["eval", *BETWEEN, "--data"], NO_FILE, []),
    "score model": (["score", "--data", "pairs.json", "--model"], NO_FOLDER, []),
    "score adapter": (["score", *ON, "--adapter"], NO_FOLDER, []),
    "score reference": (["score", *ON, "--reference"], NO_FOLDER, []),
    "score data": (["score", *BETWEEN, "--data"], NO_FILE, []),
    "compare a": (["compare"], NO_FOLDER, [MODEL]),
    "compare b": (["compare", "--max-tokens", "1", MODEL], NO_FOLDER, []),
    "compare adapter": (["compare", MODEL, MODEL, "--adapter"], NO_FOLDER, []),
    "compare prompts": (["compare", MODEL, MODEL, "--prompts"], NO_FILE, []),
    **{
        f"{command} {name}": row
        for command in ("plan", "profile")
        for name, row in {
            "config": ([command], NO_CONFIG, ON),
            "model": ([command, "--data", "pairs.json", "--model"], NO_FOLDER, []),
            "data": ([command, "--model", MODEL, "--data"], NO_FILE, []),
            "eval_data": ([command, *ON, "--eval-data"], NO_FILE, []),
            "adapter": ([command, *ON, "--adapter"], NO_FOLDER, []),
        }.items()
    },
    "profile out": (["profile", *ON, "--out"], NO_PLACE | {"a folder": "folder"}, []),
    "push folder": (["push"], NO_FOLDER, ["ada/new", "--dry-run"]),
    "report runs": (["report"], NO_FOLDER, []),
    "report out": (["report", "run", "--out"], NO_PLACE | {"a folder": "folder"}, []),
    "data check file": (["data", "check"], NO_FILE, []),
    "data check model": (["data", "check", "pairs.json", "--model"], NO_FOLDER, []),
    "data check log": (["data", "check", "pairs.json", "--log"], NO_PLACE, []),
    "data preview file": (["data", "preview"], NO_FILE, ["--model", MODEL]),
    "data preview model": (["data", "preview", "pairs.json", "--model"], NO_FOLDER, []),
    "data import source": (["data", "import"], NO_FILE, []),
    "data import out": (["data", "import", "pairs.json", "--out"], NO_NEW_FILE, []),
    "data split file": (["data", "split"], NO_FILE, []),
    "data split out": (["data", "split", "pairs.json", "--out"], NO_PLACE, []),
    "data merge files": (["data", "merge"], NO_FILE, ["--out", "new.jsonl"]),
    "data merge out": (["data", "merge", "pairs.json", "--out"], NO_NEW_FILE, []),
    "data filter file": (["data", "filter"], NO_FILE, ["--unique", "--out", "new.jsonl"]),
    "data filter model": (
        ["data", "filter", "pairs.json", "--unique", "--out", "new.jsonl", "--model"],
        NO_FOLDER,
        [],
    ),
    "data filter out": (["data", "filter", "pairs.json", "--unique", "--out"], NO_NEW_FILE, []),
    "data sample model": (["data", "sample", "--prompts", "pairs.json", "--model"], NO_FOLDER, []),
    "data sample adapter": (
        ["data", "sample", "--prompts", "pairs.json", "--model", MODEL, "--adapter"],
        NO_FOLDER,
        [],
    ),
    "data sample prompts": (["data", "sample", "--model", MODEL, "--prompts"], NO_FILE, []),
    "data sample out": (
        ["data", "sample", "--model", MODEL, "--prompts", "pairs.json", "--out"],
        NO_NEW_FILE,
        [],
    ),
    "data judge candidates": (["data", "judge"], NO_FILE, ["--judge", "rule:shorter"]),
    "data judge judge_name": (["data", "judge", "candidates.jsonl", "--judge"], NO_FOLDER, []),
    "data judge adapter": (
        ["data", "judge", "candidates.jsonl", "--judge", MODEL, "--adapter"],
        NO_FOLDER,
        [],
    ),
    "data judge out": (
        ["data", "judge", "candidates.jsonl", "--judge", "rule:shorter", "--out"],
        NO_NEW_FILE,
        [],
    ),
    "data judge rubrics": (
        ["data", "judge", "candidates.jsonl", "--judge", MODEL, "--rubrics"],
        NOTHING | {"a file": "noise.json"},
        [],
    ),
    "data label files": (["data", "label"], NO_FILE, []),
    "data label guidelines": (
        ["data", "label", "candidates.jsonl", "--guidelines"],
        NO_FILE,
        [],
    ),
    "data label out": (["data", "label", "candidates.jsonl", "--out"], NO_NEW_FILE, []),
}
CASES = [
    pytest.param([*before, value, *after], id=f"{name} is {wrong}")
    for name, (before, values, after) in ROWS_OF.items()
    for wrong, value in values.items()
]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Good files and bad ones, in a folder to run in."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.json").write_text(json.dumps(ROWS))
    answers = {"prompt": "Who is there?", "candidates": ["An otter.", "A quiet otter."]}
    Path("candidates.jsonl").write_text(json.dumps(answers) + "\n")
    Path("noise.json").write_bytes(random.Random(6).randbytes(4096))
    Path("empty.json").touch()
    Path("latin.json").write_text('{"prompt": "café"}', encoding="latin-1")
    Path("utf16.json").write_text(json.dumps(ROWS), encoding="utf-16-le")
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("Dear otter,\n")
    Path("run").mkdir()
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    split = {"train": ["1"], "held_out": ["2"]}
    record = {"trained_from": {"model": MODEL}, "data": {"file": "pairs.json", "split": split}}
    Path("adapter/dpo.json").write_text(json.dumps(record))
    monkeypatch.setattr(server, "serve", lambda *_, **__: pytest.fail("a server was started"))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    """What is in a folder: name and bytes of each file, None for a folder.

    Without ``runs``, where `train` keeps token ids for the next time; no run may be in it.
    """
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.relative_to(folder).as_posix().startswith("runs/.") and path != folder / "runs"
    }


@pytest.mark.parametrize("args", CASES)
def test_a_path_that_is_not_what_it_must_be_ends_in_one_line_and_makes_nothing(
    args: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(workplace)
    with pytest.raises(SystemExit) as ended:
        main(args)
    errors = capsys.readouterr().err.splitlines()
    assert ended.value.code in CODES, errors
    *rows, error = errors
    assert error.startswith("mlx_dpo: "), errors
    assert all(
        line.startswith(("error: ", "and ", "beta ", "mlx_dpo data check ")) for line in rows
    ), errors
    assert "Error: " not in error  # the net of `main` is for what nobody foresaw
    assert contents(workplace) == before


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "--model", MODEL, "--prompt", "caf\udce9 please"],
        ["data", "check", "caf\udce9.json"],
        ["train", *ON, "--out", "\udcff"],
    ],
)
def test_an_argument_that_is_not_utf8_is_refused_in_one_line(
    args: list[str], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(workplace)
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mlx_dpo: the argument ")
    assert "is not UTF-8 (byte 0x" in line
    assert contents(workplace) == before


def paths_of(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[str]:
    """Every parameter below a command that names a file or folder: the words, then its name."""
    if isinstance(command, click.Group):
        for word, child in command.commands.items():
            yield from paths_of(child, (*words, word))
    for given in command.params:
        metavar = given.metavar or ""
        if isinstance(given.type, Name) or metavar in ("FILE", "FOLDER", "JUDGE"):
            yield " ".join((*words, str(given.name)))


def test_no_path_of_any_command_is_left_out() -> None:
    assert set(paths_of(cli)) == set(ROWS_OF)


@pytest.mark.parametrize("value", ['""', '"a\\u0000b"', f'"{"x" * 5000}"', '"pipe"'])
@pytest.mark.parametrize("key", ["model", "data", "eval_data", "out", "run_dir", "adapter"])
def test_a_name_in_a_config_that_nothing_can_have_is_told_with_its_key(
    key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.toml").write_text(f"{key} = {value}\n")
    with pytest.raises(SystemExit) as ended:
        main(["train", "mine.toml"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"mlx_dpo: mine.toml: {key}: ")
