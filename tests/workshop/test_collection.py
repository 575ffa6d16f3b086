"""Splitting, merging and filtering files of pairs: every row accounted for."""

import errno
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mlx_dpo.cli import cli
from mlx_dpo.errors import DiskError
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.split import held_out
from mlx_dpo.workshop import collection

ROOT = Path(__file__).parent.parent.parent


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, args)])


def write(file: Path, rows: Sequence[tuple[str, str, str]], kind: str = "") -> Path:
    keys = ("prompt", "chosen", "rejected")
    objects = [{"kind": kind, **dict(zip(keys, row, strict=True))} for row in rows]
    file.write_text("".join(json.dumps(one) + "\n" for one in objects))
    return file


def test_no_prompt_is_on_both_sides_and_every_kind_on_the_test_side(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    kinds = ("tone", "format")
    rows = [
        {"kind": kinds[n % 2], "prompt": f"q{n % 17}", "chosen": f"yes {n}", "rejected": "no"}
        for n in range(60)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert invoke("split", file, "--test", "0.3", "--seed", "3").exit_code == 0
    train, test = (read_preferences(tmp_path / f"pairs.{side}.jsonl") for side in ("train", "test"))
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in test}
    assert {pair.kind for pair in test} == set(kinds)
    assert sorted(pair.id for pair in (*train, *test)) == sorted(map(str, range(1, 61)))
    everything = read_preferences(file)
    mask = held_out(everything, 0.3, 3)
    expected = [pair.id for pair, held in zip(everything, mask, strict=True) if held]
    assert [pair.id for pair in test] == expected, "the same split as a run makes"


def test_a_split_follows_from_its_seed_and_replaces_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [(f"q{n}", "yes", "no") for n in range(30)])
    contents = []
    for seed in ("0", "0", "1"):
        assert invoke("split", file, "--seed", seed, "--overwrite").exit_code == 0
        contents.append((tmp_path / "p.test.jsonl").read_bytes())
    assert contents[0] == contents[1] != contents[2]
    again = invoke("split", file)
    assert "already exists" in str(again.exception)


def test_rows_that_contradict_each_other_are_in_neither_part(tmp_path: Path) -> None:
    rows = [(f"q{n}", "yes", "no") for n in range(10)]
    file = write(tmp_path / "p.jsonl", [*rows, ("q4", "no", "yes"), ("q5", "same", "same")])
    result = invoke("split", file, "--test", "0.2")
    assert "rows    12 read = 9 kept + 3 dropped (2 contradiction, 1 equal)" in result.stdout
    parts = [read_preferences(tmp_path / f"p.{side}.jsonl") for side in ("train", "test")]
    assert sorted(pair.question for part in parts for pair in part) == sorted(
        f"q{n}" for n in range(10) if n != 4
    )


def test_a_single_prompt_is_refused_and_nothing_written(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [("q", "yes", "no"), ("q", "aye", "no")])
    assert "nothing to split" in str(invoke("split", file).exception)
    assert list(tmp_path.iterdir()) == [file]


def test_merged_ids_tell_where_a_pair_comes_from_and_repeats_go(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [("a", "x", "y"), ("b", "x", "y")])
    two = write(tmp_path / "two.jsonl", [("b", "x", "y"), ("c", "x", "y"), ("a", "y", "x")])
    out = tmp_path / "all.jsonl"
    result = invoke("merge", one, two, "--out", out)
    assert "rows    5 read = 2 kept + 3 dropped (2 contradiction, 1 again)" in result.stdout
    assert [(pair.question, pair.id) for pair in read_preferences(out)] == [
        ("b", "one:2"),
        ("c", "two:2"),
    ]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    files = []
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        files.append(write(tmp_path / folder / "p.jsonl", [(folder, "yes", "no")]))
    out = tmp_path / "all.jsonl"
    assert invoke("merge", *files, "--out", out).exit_code == 0
    assert [pair.id for pair in read_preferences(out)] == ["1-p:1", "2-p:1"]


def test_a_length_ratio_is_of_characters_or_of_a_models_tokens(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl",
        [
            ("a", "1234", "12345678"),  # exactly twice
            ("b", "1234", "123456789"),
            ("c", "123456789", "1234"),
            ("d", "", "1"),
        ],
    )
    out = tmp_path / "out.jsonl"
    result = invoke("filter", file, "--max-length-ratio", "2", "--out", out)
    assert "4 read = 1 kept + 3 dropped (3 length-ratio)" in result.stdout
    assert [pair.question for pair in read_preferences(out)] == ["a"]
    # Five characters against one, which the tokenizer of the model writes as four bytes.
    words = [("a", "happy", "\U0001f40b"), ("b", "happy", "happy."), ("c", "happy", "happy " * 4)]
    file = write(tmp_path / "w.jsonl", words)
    args = ("filter", file, "--out", out, "--overwrite", "--max-length-ratio", "1.5")
    assert invoke(*args).exit_code == 0
    assert [pair.question for pair in read_preferences(out)] == ["b"]
    assert invoke(*args, "--model", ROOT / "checkpoints" / "tiny-sft").exit_code == 0
    assert [pair.question for pair in read_preferences(out)] == ["a", "b"]


def test_kinds_and_repeats_are_filtered_and_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [("a", "x", "y"), ("a", "x", "y"), ("b", "x", "y")], "tone")
    with file.open("a") as more:
        more.write('{"prompt": "c", "chosen": "x", "rejected": "y", "kind": "format"}\n')
    out = tmp_path / "out.jsonl"
    result = invoke("filter", file, "--kind", "tone", "--unique", "--out", out)
    assert "4 read = 2 kept + 2 dropped (1 again, 1 other-kind)" in result.stdout
    assert [pair.id for pair in read_preferences(out)] == ["1", "3"]


@pytest.mark.parametrize(
    ("args", "said"),
    [((), "nothing to filter by"), (("--model", "x"), "--model is for --max-length-ratio")],
)
def test_a_filter_without_a_wish_is_refused(
    tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    file = write(tmp_path / "p.jsonl", [("a", "x", "y")])
    result = invoke("filter", file, "--out", tmp_path / "out.jsonl", *args)
    assert result.exit_code == 2
    assert said in result.output


class FullDisk(io.RawIOBase):
    """A file on a disk without room."""

    def readable(self) -> bool:
        return True

    writable = seekable = readable

    def seek(self, *_: int) -> int:
        return 0

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("num_rows", [1, 3000])  # within the file's buffer, and beyond it
def test_no_room_for_the_temporary_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    file = write(tmp_path / "p.jsonl", [(f"q{n}", "yes", "no") for n in range(num_rows)])
    monkeypatch.setattr(collection, "TemporaryFile", lambda: io.BufferedRandom(FullDisk()))
    result = invoke("merge", file, "--out", tmp_path / "all.jsonl")
    assert isinstance(result.exception, DiskError)
    assert (
        str(result.exception) == "a temporary file: not written: No space left on device; make room"
    )
    assert list(tmp_path.iterdir()) == [file]
