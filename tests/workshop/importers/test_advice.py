"""A file of another tool, given to `train` or `data check`: one line, with the command to type."""

import gzip
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlx_dpo.cli import cli
from mlx_dpo.errors import DataError
from mlx_dpo.workshop.importers.advice import advice
from tests.workshop.importers.test_import import DATA
from tests.workshop.importers.test_shapes import SAMPLES

OWN = {"trl-standard.jsonl", "trl-conversational.jsonl"}
MODEL = "checkpoints/tiny-sft"


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, list(map(str, args)))


@pytest.mark.parametrize("name", [sample[0] for sample in SAMPLES if sample[0] != "mixed.jsonl"])
def test_every_sample_is_named_and_the_command_that_is_shown_reads_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = advice(DATA / name)
    assert line is not None
    assert "\n" not in line
    place, _, rest = line.partition(": this is ")
    what, _, command = rest.rpartition(": mlx_dpo ")
    assert place.startswith(str(DATA / name))
    assert what
    result = invoke(*shlex.split(command))
    assert result.exit_code == 0, result.output
    assert advice(tmp_path / "pairs.jsonl") is None
    assert invoke("data", "check", "pairs.jsonl").exit_code == 0


def test_our_own_files_are_no_other_tools() -> None:
    for name in OWN:
        assert advice(DATA / name) is None
    assert advice(Path("data/dpo/preferences.json")) is None


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": "q", "chosen": "a"},
        {"prompt": "q", "chosen": 1, "rejected": "b"},
        {"prompt": "q"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "system": "", "history": []},
        {"user": "q", "chosen": "a", "rejected": "b", "source": "x"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "id": [], "kind": 1},
    ],
)
def test_what_the_reader_knows_best_is_left_to_it(tmp_path: Path, row: dict[str, Any]) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert advice(file) is None
    file.write_text("{\n")
    assert advice(file) is None


@pytest.mark.parametrize(
    "answers", [[], ["a", "b"], [{"text": "a", "model": "m"}, {"text": "b", "seed": 1}]]
)
def test_candidates_are_named_with_the_command_that_makes_pairs_of_them(
    tmp_path: Path, answers: list[Any]
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"id": "p", "prompt": "q", "answers": answers}) + "\n")
    for command in (("data", "check"), ("audit",), ("train", "--model", MODEL, "--data")):
        said = str(invoke(*command, file).exception)
        assert said.startswith(f"{file}: holds candidates")
        assert f"mlx_dpo data label {file} --out pairs.jsonl (or data judge)" in said
    imported = invoke("data", "import", file, "--out", tmp_path / "out.jsonl")
    assert "it holds candidates" in str(imported.exception)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b", "system": "Be brief."}, "trl"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "history": [["c", "d"]]}, "trl"),
        ({"question": "q", "chosen": "a", "rejected": "b"}, "columns"),
    ],
)
def test_columns_that_only_an_import_uses_are_named(
    tmp_path: Path, row: dict[str, Any], name: str
) -> None:
    file = tmp_path / "my file.jsonl"
    file.write_text(json.dumps(row) + "\n")
    line = advice(file)
    assert line is not None
    assert f"mlx_dpo data import '{file}' --format {name} --out pairs.jsonl" in line
    if name == "trl":
        assert f"with a column {list(row)[-1]!r}, which only an import uses" in line


def test_packed_files_and_tables_are_named_too(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n"
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(line.encode()))
    assert "this is trl (prompt given or implied, chosen, rejected, packed by gzip): mlx_dpo" in (
        advice(packed) or ""
    )
    table = tmp_path / "in.csv"
    table.write_text("a,b\n1,2\n")
    assert f"{table}: this is CSV: mlx_dpo data import {table} --format auto" in (
        advice(table) or ""
    )
    broken = tmp_path / "in.parquet"
    broken.write_bytes(b"PAR1")
    assert f"{broken}: this is Parquet: mlx_dpo data import" in (advice(broken) or "")


@pytest.mark.parametrize(
    "command",
    [
        ("data", "check"),
        ("audit",),
        ("data", "merge", "--out", "never.jsonl"),
        ("data", "split"),
        ("data", "filter", "--unique", "--out", "never.jsonl"),
        ("data", "preview", "--model", MODEL),
        ("train", "--model", MODEL, "--data"),
        ("plan", "--model", MODEL, "--data"),
        ("train", "--model", MODEL, "--data", "data/dpo/preferences.json", "--eval-data"),
    ],
)
def test_every_command_that_takes_pairs_says_the_same_line(command: tuple[str, ...]) -> None:
    file = DATA / "openai.jsonl"
    result = invoke(*command, file)
    assert isinstance(result.exception, DataError)
    assert result.exception.exit_code == 3
    assert str(result.exception) == (
        f"{file}:1: this is openai (OpenAI's preference files): "
        f"mlx_dpo data import {file} --format openai --out pairs.jsonl"
    )


@pytest.mark.parametrize("name", ["in.jsonl.zst", "in.json.XZ", "in.csv.bz2", "in.xlsx"])
@pytest.mark.parametrize(
    "command", [("data", "import"), ("data", "check"), ("train", "--model", MODEL, "--data")]
)
def test_packed_files_are_refused_by_name(
    tmp_path: Path, name: str, command: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(b"{}")
    result = invoke(*command, tmp_path / name)
    assert isinstance(result.exception, DataError)
    assert f"{name}: is " in str(result.exception)


@pytest.mark.parametrize("name", ["data.arrow", "folder"])
def test_arrow_is_one_line_with_the_way_out(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    if name == "folder":
        source.mkdir()
        (source / "state.json").write_text("{}")
        (source / "data-00000-of-00001.arrow").write_bytes(b"ARROW1")
    else:
        source.write_bytes(b"ARROW1")
    result = invoke("data", "import", source)
    assert isinstance(result.exception, DataError)
    assert "Arrow files are not read; with the library that wrote it" in str(result.exception)
