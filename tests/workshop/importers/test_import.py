"""Other people's files: each shape is known by itself, and every row is kept or counted."""

import gzip
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mlx_dpo.cli import cli
from mlx_dpo.errors import DataError, UsageError
from mlx_dpo.preferences.reader import read_preferences
from mlx_dpo.preferences.schema import Problems
from mlx_dpo.records import Message, Preference
from mlx_dpo.workshop.collection import Collection, CollectionAccount
from mlx_dpo.workshop.importers.formats import FORMATS
from mlx_dpo.workshop.importers.reading import collect, open_rows
from mlx_dpo.workshop.importers.sources import find_files

DATA = Path(__file__).parent / "data"


def user(text: str) -> Message:
    return Message("user", text)


def run_import(
    source: Path, out: Path, *, name: str = "auto", all_pairs: bool = False
) -> tuple[str, CollectionAccount, list[Preference]]:
    """The format, the account, and the pairs as the project's reader finds them in the output."""
    shape, rows, _ = open_rows([source], name)
    with Collection(Problems()) as collection:
        collect(rows, shape, collection, each=name == "auto", all_pairs=all_pairs)
        account = collection.account()
        assert account.read == account.kept + account.dropped.total()
        if account.pairs:
            assert collection.write(out) == account.pairs
    return shape.name, account, read_preferences(out) if account.pairs else []


@pytest.mark.parametrize(
    ("file", "name", "pairs", "dropped"),
    [
        ("hh-rlhf.jsonl.gz", "hh-rlhf", 10, {}),
        ("trl-standard.jsonl", "trl", 2, {}),
        ("trl-conversational.jsonl", "trl", 1, {}),
        ("trl-implicit-conversational.jsonl", "trl", 1, {"no-common-prompt": 1}),
        ("trl-implicit-standard.jsonl", "trl", 0, {"no-common-prompt": 1}),
        ("ultrafeedback-binarized.jsonl", "trl", 1, {"tie": 1}),
        ("intel-orca.jsonl", "columns", 2, {}),
        ("argilla.jsonl", "columns", 1, {"tie": 1}),
        ("scored.jsonl", "scored", 1, {"tie": 1, "no-pair": 1}),
        ("ultrafeedback.jsonl", "scored", 1, {}),
        ("openassistant-trees.jsonl", "tree", 2, {"no-pair": 1}),
        ("pairs.csv", "trl", 2, {"wrong-type": 1}),
    ],
)
def test_each_shape_is_known_by_itself_and_each_row_kept_or_counted(
    tmp_path: Path, file: str, name: str, pairs: int, dropped: dict[str, int]
) -> None:
    found, account, read = run_import(DATA / file, tmp_path / "out.jsonl")
    assert (found, len(read), dict(account.dropped)) == (name, pairs, dropped)


def test_every_shape_prefers_the_same_answer_to_the_same_question(tmp_path: Path) -> None:
    for file in DATA.glob("*.jsonl"):
        _, _, pairs = run_import(file, tmp_path / file.name)
        for pair in pairs:
            answers = pair.chosen[-1].content.strip(" ."), pair.rejected[-1].content.strip(" .")
            assert answers not in {("Green", "Blue"), ("Dry", "Wet"), ("are five", "are four")}
            assert len(pair.chosen) == len(pair.rejected) == 1


def test_a_transcript_is_split_by_turn_and_keeps_all_of_them(tmp_path: Path) -> None:
    source, out = DATA / "hh-rlhf.jsonl.gz", tmp_path / "out.jsonl"
    _, _, pairs = run_import(source, out)
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    names = {"user": "Human", "assistant": "Assistant"}
    for row, pair in zip(rows, pairs, strict=True):
        for key, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            turns = [f"{names[who]}: {what}" for who, what in (*pair.prompt, *answer)]
            assert "\n\n" + "\n\n".join(turns) == row[key].rstrip()
        assert pair.prompt[-1].role == "user"
    assert {len(pair.prompt) for pair in pairs} == {1, 3, 7, 9}


def hh(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (hh("a", "b", "c", "d"), hh("a", "b", "other", "d")),  # the last human turn differs
        (hh("a", "b", "c", "d"), hh("a", "other", "c", "d")),  # an earlier answer differs
        (hh("a", "b", "c"), hh("a", "b", "c", "d")),  # one has no answer
        (hh("a", "b"), hh("a", "b", "c", "d")),  # one is longer
        (hh("Hello", "b"), hh("Help", "b")),  # the texts share characters, but no turn
    ],
)
def test_dialogues_without_a_common_prompt_are_dropped_and_never_guessed(
    tmp_path: Path, chosen: str, rejected: str
) -> None:
    file = tmp_path / "in.jsonl"
    good = {"chosen": hh("q", "yes"), "rejected": hh("q", "no")}
    rows = [good, {"chosen": chosen, "rejected": rejected}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, account, pairs = run_import(file, tmp_path / "out.jsonl")
    assert dict(account.dropped) == {"no-common-prompt": 1}
    assert [(pair.prompt, pair.id) for pair in pairs] == [((user("q"),), "1")]


def test_a_ranking_gives_its_best_and_worst_or_every_two(tmp_path: Path) -> None:
    file = DATA / "scored.jsonl"
    _, _, pairs = run_import(file, tmp_path / "one.jsonl")
    assert [(p.chosen[0].content, p.rejected[0].content) for p in pairs] == [("Blue.", "Green.")]
    assert pairs[0].kind == "factual"
    _, _, pairs = run_import(file, tmp_path / "all.jsonl", all_pairs=True)
    assert [(p.chosen[0].content, p.rejected[0].content, p.id) for p in pairs] == [
        ("Blue.", "Grey.", "1-1"),
        ("Blue.", "Green.", "1-2"),
        ("Grey.", "Green.", "1-3"),
    ]


def test_a_tree_gives_pairs_at_every_depth_without_deleted_and_unranked_replies(
    tmp_path: Path,
) -> None:
    _, _, pairs = run_import(
        DATA / "openassistant-trees.jsonl", tmp_path / "out.jsonl", all_pairs=True
    )
    found = [(p.question, p.chosen[0].content, p.rejected[0].content) for p in pairs]
    assert found == [
        ("Sky?", "Blue.", "Grey."),
        ("Sky?", "Blue.", "Green."),
        ("Sky?", "Grey.", "Green."),
        ("Why?", "Light scatters.", "It is paint."),
    ]
    assert pairs[-1].prompt == (user("Sky?"), Message("assistant", "Blue."), user("Why?"))


def test_a_system_column_becomes_a_system_turn_where_it_says_something(tmp_path: Path) -> None:
    _, _, pairs = run_import(DATA / "intel-orca.jsonl", tmp_path / "out.jsonl")
    assert [pair.prompt for pair in pairs] == [
        (Message("system", "You are terse."), user("Sky?")),
        (user("Sea?"),),
    ]


def test_an_instruction_keeps_its_input(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    rows = [
        {"instruction": "Sum up.", "input": "A long text.", "chosen": "A text.", "rejected": "?"},
        {"instruction": "Say hi.", "input": "", "chosen": "Hi.", "rejected": "?"},
        {"input": "Say ho.", "chosen": "Ho.", "rejected": "?"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name, _, pairs = run_import(file, tmp_path / "out.jsonl")
    assert name == "columns"
    assert [pair.question for pair in pairs] == ["Sum up.\nA long text.", "Say hi.", "Say ho."]


def test_rows_that_contradict_each_other_are_both_left_out(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    texts = [("a", "x", "y"), ("b", "x", "y"), ("a", "y", "x"), ("c", "x", "x")]
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in texts]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, account, pairs = run_import(file, tmp_path / "out.jsonl")
    assert dict(account.dropped) == {"contradiction": 2, "equal": 1}
    assert [pair.question for pair in pairs] == ["b"]


def test_rows_that_are_not_json_are_counted_and_the_others_kept(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    good = '{"prompt": "a", "chosen": "x", "rejected": "y"}\n'
    file.write_bytes(b'{"broken\n' + good.encode() + b'\xff\n[]\n{"chosen": 3, "rejected": "y"}\n')
    _, account, pairs = run_import(file, tmp_path / "out.jsonl")
    expected = {"bad-json": 1, "bad-utf8": 1, "not-object": 1, "wrong-type": 1}
    assert dict(account.dropped) == expected
    assert [pair.id for pair in pairs] == ["2"]


def test_csv_fields_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    _, _, pairs = run_import(DATA / "pairs.csv", tmp_path / "out.jsonl")
    assert [(pair.question, pair.rejected[0].content, pair.kind) for pair in pairs] == [
        ("Sky?", "Green.", "factual"),
        ("Two\nlines?", 'No, "one".', "format"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("in.csv", "\ufeffprompt;chosen;rejected\r\nSky?;Blue, deep.;Green.\r\n"),
        (
            "in.csv",
            '"prompt, asked"\t"prompt"\t"chosen"\t"rejected"\n,\tSky?\t"Blue, deep."\tGreen.\n',
        ),
        ("in.TSV", "prompt\tchosen\trejected\nSky?\tBlue, deep.\tGreen.\n"),
        ("in.csv", 'prompt,question,chosen,rejected\n,Sky?,"Blue, deep.",Green.\n ,,x,y\n'),
        (
            "in.csv",
            """prompt,chosen,rejected
Sky?,"[{'content': 'Sky?', 'role': 'user'}
 {'content': 'Blue, deep.', 'role': 'assistant'}]","[{'content': 'Sky?', 'role': 'user'}
 {'content': 'Green.', 'role': 'assistant'}]"
Sky?,"[{'content': array(['x']), 'role': 'user'}]",y
""",
        ),
        (
            "in.csv",
            """prompt,chosen,rejected
Sky?,"[{'role': 'user', 'content': 'Sky?'}, {'role': 'assistant', 'content': 'Blue, deep.'}]",\
"[{'role': 'user', 'content': 'Sky?'} {'role': 'assistant', 'content': 'Green.'}]"
""",
        ),
    ],
    ids=["Excel", "tabs", "TSV", "empty cells", "NumPy", "Python"],
)
def test_tables_are_read_as_other_programs_write_them(
    tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content.replace("\\\n", ""))
    _, _, (pair,) = run_import(tmp_path / name, tmp_path / "out.jsonl")
    assert (pair.question, pair.chosen[0].content) == ("Sky?", "Blue, deep.")
    assert pair.rejected[0].content == "Green."


def test_parquet_is_read_like_the_same_rows_in_json(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    source = DATA / "ultrafeedback-binarized.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    expected = run_import(source, tmp_path / "json.jsonl")
    assert run_import(tmp_path / "in.parquet", tmp_path / "parquet.jsonl") == expected


def test_parquet_without_pyarrow_is_one_line_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install -e '\S*\[parquet\]'"):
        open_rows([tmp_path / "in.parquet"], "auto")


def test_broken_parquet_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "in.parquet").write_bytes(b"PAR1" * 10)
    with pytest.raises(DataError, match="not readable as Parquet"):
        open_rows([tmp_path / "in.parquet"], "auto")


@pytest.mark.parametrize(
    ("content", "place", "reason"),
    [
        ("a,b\n1,2,3\n", "in.csv:2", "the header has 2 columns, the row 3"),
        ("\n\na,b\n\n1\n", "in.csv:5", "the header has 2 columns, the row 1"),
        (",,\na,b,c\n", "in.csv:2", "the first has ['']"),
        ("a,b\n" + "x" * 10_000_001 + ",y\n", "in.csv:2", "not CSV: field larger than"),
        ("prompt,chosen,chosen\n", "in.csv:1", "two columns have the name 'chosen'; rename one"),
        ("a,\udce9\n", "in.csv:1", "the header is not UTF-8"),
    ],
)
def test_csv_without_a_known_shape_is_one_line_with_its_place(
    tmp_path: Path, content: str, place: str, reason: str
) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(content.encode(errors="surrogateescape"))
    result = invoke("import", source, "--out", tmp_path / "out.jsonl")
    assert isinstance(result.exception, DataError)
    assert str(result.exception).startswith(f"{tmp_path / place}: ")
    assert reason in str(result.exception)
    assert "\n" not in str(result.exception)


def test_csv_rows_that_cannot_be_used_are_counted_at_their_line_and_the_others_kept(
    tmp_path: Path,
) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(
        b"\xef\xbb\xbfprompt,,chosen,rejected,\n"  # two blank names, as spreadsheets write them
        b'"two\nlines",z,yes,no,\n'
        b"q,z,yes,no,more,still more\n"
        b"q,z,yes\n"
        b"caf\xe9,z,yes,no,\n"
        b"nul \0,z,yes,no,\n"
    )
    result = invoke("import", source, "--out", tmp_path / "out.jsonl")
    assert "5 read = 2 kept + 3 dropped (2 wrong-type, 1 bad-utf8)" in result.stdout
    places = [line.split(": ")[1:3] for line in result.stderr.splitlines()]
    assert places == [
        [f"{source}:4:1", "wrong-type"],
        [f"{source}:5:1", "wrong-type"],
        [f"{source}:6:1", "bad-utf8"],
        [f"{source}:7:1", "control-character"],
    ]


def test_scores_and_roles_of_any_type_are_no_crash(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    roles: list[Any] = [[], {}, "assistant"]
    replies = [{"role": role, "text": "x", "rank": 10**400} for role in roles]
    rows = [
        {
            "prompt": "q",
            "completions": [{"text": "x", "score": 10**400}, {"text": "y", "score": 1}],
        },
        {"prompt": {"role": [], "text": "q", "replies": []}},
        {"prompt": {"role": "prompter", "text": "q", "replies": replies}},
    ]
    for row in rows:
        source.write_text(json.dumps(row) + "\n")
        _, account, _ = run_import(source, tmp_path / "out.jsonl")
        assert dict(account.dropped) == {"no-pair": 1}


def test_parquet_columns_of_dates_are_not_read_and_twin_columns_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "in.parquet"
    texts = {"prompt": ["q"], "chosen": ["yes"], "rejected": ["no"]}
    dates = {
        "nanoseconds": arrow.array([1], arrow.timestamp("ns")),
        "beyond the year 9999": arrow.array([2**60], arrow.timestamp("us")),
        "far away": arrow.array([1], arrow.timestamp("us", "No/Such_Zone")),
    }
    parquet.write_table(arrow.table(texts | dates), file)
    _, account, _ = run_import(file, tmp_path / "out.jsonl")
    assert account.pairs == 1
    names = ["prompt", "chosen", "chosen", "rejected"]
    parquet.write_table(arrow.Table.from_arrays([arrow.array(["x"])] * 4, names=names), file)
    with pytest.raises(DataError, match="two columns have the name 'chosen'"):
        open_rows([file], "auto")


def test_parquet_texts_that_are_not_utf8_are_one_line(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "in.parquet"
    bad = arrow.Array.from_buffers(arrow.string(), 1, arrow.array([b"\xff"]).buffers())
    parquet.write_table(arrow.table({"prompt": bad, "chosen": ["x"], "rejected": ["y"]}), file)
    with pytest.raises(DataError, match=r"in\.parquet: not readable as Parquet: 'utf-8' codec"):
        open_rows([file], "auto")


def test_a_data_set_of_the_hub_is_read_from_the_cache_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "datasets--someone--pairs"
    data = repository / "snapshots" / "0123abcd" / "data"
    data.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    for split in ("train", "test"):
        shutil.copy(DATA / "scored.jsonl", data / f"{split}.jsonl")
    with pytest.raises(UsageError, match=r"--files: data/test\.jsonl, data/train\.jsonl"):
        find_files("someone/pairs")
    assert find_files("someone/pairs", "test*") == [data / "test.jsonl"]
    with pytest.raises(UsageError, match=r"someone/others: .* the download from the hub failed"):
        find_files("someone/others")
    with pytest.raises(UsageError, match="no such file or folder"):
        find_files("./someone/pairs")


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, args)])


def test_the_command_says_what_it_found_and_never_replaces_a_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    source = DATA / "scored.jsonl"
    result = invoke("import", source, "--out", out)
    assert result.exit_code == 0
    assert "format  scored: completions of a prompt with scores, detected from row 1" in (
        result.stdout
    )
    assert "rows    3 read = 1 kept + 2 dropped (1 no-pair, 1 tie)" in result.stdout
    assert f"left out: {source}:3:1: no-pair: " in result.stderr
    before = out.read_bytes()
    again = invoke("import", source, "--out", out)
    assert again.exit_code == 1
    assert "already exists" in str(again.exception)
    assert out.read_bytes() == before
    assert invoke("import", source, "--out", out, "--overwrite").exit_code == 0
    assert out.read_bytes() == before


def test_every_format_can_be_named_on_the_command_line() -> None:
    from mlx_dpo.cli.data import importing

    assert set(importing.NAMES) == {"auto", *FORMATS}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "in.jsonl: no rows"),
        (b'{"a": 1}\n', "the shape of its rows is not known"),
        (b"\x1f\x8bnot really", "not a whole gzip file"),
        (b"\x28\xb5\x2f\xfd", "in.jsonl: is packed by zstd; unpack it first"),
        (b"PK\x03\x04", "in.jsonl: is packed by zip; unpack it first"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_leaves_no_file(
    tmp_path: Path, content: bytes, said: str
) -> None:
    source = tmp_path / ("in.jsonl.gz" if content[:1] == b"\x1f" else "in.jsonl")
    source.write_bytes(content)
    result = invoke("import", source, "--out", tmp_path / "out.jsonl")
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert isinstance(result.exception, DataError)
    assert list(tmp_path.iterdir()) == [source]
