"""Other tools' files and public data sets: the pairs of a small sample of each shape."""

import copy
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlx_dpo.preferences.schema import LEVELS, Problems
from mlx_dpo.records import Message
from mlx_dpo.workshop.collection import Collection
from mlx_dpo.workshop.importers.fields import Fields, Format, LeftOutError, Row
from mlx_dpo.workshop.importers.formats import FORMATS, detect
from mlx_dpo.workshop.importers.reading import Summary, collect, open_rows
from tests.workshop.importers.test_import import DATA, run_import, user

SKY = ("Sky?", "Blue.", "Green.")
SEA = ("Sea?", "Wet.", "Dry.")
TERSE = Message("system", "You are terse.")
BLUE = (user("Sky?"), Message("assistant", "Blue."), user("Sea?"))

# Sample, format of its first row, its pairs, and its rows left out.
SAMPLES: list[tuple[str, str, list[tuple[str, str, str]], dict[str, int]]] = [
    ("openai.jsonl", "openai", [SKY, SEA], {"unsupported": 1}),
    ("swift.jsonl", "swift", [SKY, SEA, SEA], {"unsupported": 1}),
    (
        "llama-factory.jsonl",
        "llama-factory",
        [SEA, SKY, ("Which colour has it?\nThe sky", "Blue.", "Green.")],
        {"unsupported": 1},
    ),
    ("alpaca-ranking.jsonl", "columns", [("And the sea?", "Wet.", "Dry.")], {}),
    ("kto.jsonl", "kto", [SKY, SEA, SKY], {"no-pair": 2}),
    ("helpsteer-ratings.jsonl", "rated", [SKY], {"no-pair": 2}),
    ("open-webui.json", "open-webui", [SKY, SEA], {"no-pair": 3, "unsupported": 1, "tie": 1}),
    ("open-webui-chats.json", "open-webui", [SKY, SKY], {"no-pair": 1}),
    ("nectar.jsonl", "ranked", [SKY, SEA], {}),
    ("nemo.jsonl", "ranked", [SKY], {}),
    ("shp.jsonl", "shp", [SKY, SEA], {}),
    ("pku-saferlhf.jsonl", "pku-saferlhf", [SKY, SEA], {}),
    ("helpsteer.jsonl", "helpsteer", [SKY, SEA, SKY], {"tie": 1}),
    ("arena.jsonl", "arena", [SKY, SEA, SEA], {"tie": 1, "no-common-prompt": 1}),
    ("arena-table.csv", "arena-table", [SKY, SEA], {"tie": 1, "no-common-prompt": 1}),
    ("votes.jsonl", "votes", [SKY, SEA, SKY], {"tie": 1, "no-pair": 1}),
    ("webgpt.jsonl", "webgpt", [SKY, ("Sea?", "Wet [1].", "Dry [1].")], {"tie": 1}),
    (
        "summaries.jsonl",
        "summaries",
        [
            (
                "SUBREDDIT: r/sky\nTITLE: The sky\nPOST: I looked up. It was blue.\nTL;DR:",
                "Blue.",
                "Green.",
            ),
            ("TITLE: The sea\nARTICLE: The sea is wet, says the sea.\nTL;DR:", "Wet.", "Dry."),
        ],
        {},
    ),
    (
        "fine-grained.jsonl",
        "fine-grained",
        [("Sky?\n\nSky\nThe sky is blue.\nIt is far.", "Blue.", "Red.")],
        {"tie": 1},
    ),
    (
        "step-dpo.jsonl",
        "step-dpo",
        [
            (
                "Two and three?",
                "Let's think step by step.\nStep 1: Two and three are five",
                "Let's think step by step.\nStep 1: Two and three are four",
            )
        ],
        {},
    ),
    ("tulu.jsonl", "trl", [SKY, SEA, SEA], {"no-common-prompt": 1}),
    ("sharegpt.jsonl", "trl", [SKY, SEA, SKY, SEA], {}),
    ("lists.jsonl", "lists", [SKY, SEA, SKY], {}),
    ("columnar.jsonl", "columnar", [SKY, SEA], {}),
    ("mixed.jsonl", "trl", [SKY, SEA, SEA], {"missing-key": 1}),
]


def summary_of(file: Path, name: str = "auto") -> tuple[Summary, Problems]:
    """What an import says beside its account."""
    shape, rows, _ = open_rows([file], name)
    problems = Problems()
    with Collection(problems) as collection:
        return collect(rows, shape, collection, each=name == "auto"), problems


@pytest.mark.parametrize(("file", "name", "pairs", "dropped"), SAMPLES)
def test_each_shape_gives_its_pairs_and_each_row_is_kept_or_counted(
    tmp_path: Path,
    file: str,
    name: str,
    pairs: list[tuple[str, str, str]],
    dropped: dict[str, int],
) -> None:
    found, account, read = run_import(DATA / file, tmp_path / "out.jsonl")
    texts = [(p.question, p.chosen[-1].content, p.rejected[-1].content) for p in read]
    assert (found, texts, dict(account.dropped)) == (name, pairs, dropped)
    assert all(len(pair.chosen) == len(pair.rejected) == 1 for pair in read)


def test_the_exports_of_the_documents_are_the_same_forty_pairs(tmp_path: Path) -> None:
    texts = []
    for name in ("openai-export.jsonl", "open-webui-export.json"):
        _, account, pairs = run_import(DATA / name, tmp_path / name)
        assert account.read == account.kept == 40
        texts.append([(p.question, p.chosen[0].content, p.rejected[0].content) for p in pairs])
    own = json.loads(Path("data/dpo/preferences.json").read_text())
    known = {(row["user"], row["chosen"], row["rejected"]) for row in own}
    assert texts[0] == texts[1]
    assert set(texts[0]) < known


@pytest.mark.parametrize(
    "row",
    [
        {"prompt_messages": [{"role": "user", "content": "Sky?"}]}
        | {"chosen_messages": [{"role": "assistant", "content": "Blue."}]}
        | {"rejected_messages": [{"role": "assistant", "content": "Green."}]},
        {"prompt": "Sky?", "preferred": "Blue.", "dispreferred": "Green."},
        {"question": "Sky?", "response_j": "Blue.", "response_k": "Green."},
        {"instruction": "Sky?", "response_a": "Green.", "response_b": "Blue.", "chosen": "B"},
        {"prompt": "Sky?", "response_a": "Green.", "response_b": "Blue.", "preferred": "b"},
        {"prompt": "Sky?", "answer_0": "Green.", "answer_1": "Blue.", "better": 1},
        {"prompt": "\n\nHuman: Sky?\n\nAssistant:", "chosen": "Blue.", "rejected": "Green."},
        {
            "trajectory": [{"from": "user", "value": "Sky?"}],
            "chosen": "Blue.",
            "rejected": "Green.",
        },
        {"conversation": [{"human": "Sky?", "assistant": "Blue."}], "rejected_response": "Green."},
        {"prompt": "Sky?", "chosen": ["Blue."], "rejected": ["Green."]},
        {"contents": [{"role": "user", "parts": [{"text": "Sky?"}]}]}
        | {
            "completions": [
                {"score": 0.0, "completion": {"role": "model", "parts": [{"text": "Green."}]}},
                {"score": 1.0, "completion": {"role": "model", "parts": [{"text": "Blue."}]}},
            ]
        },
        {"messages": '[{"role": "user", "content": "Sky?"}]'}
        | {"chosen": '{"role": "assistant", "content": "Blue."}', "rejected": "Green."},
    ],
)
def test_names_of_one_meaning_give_the_same_pair(tmp_path: Path, row: dict[str, Any]) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(row) + "\n")
    _, _, (pair,) = run_import(file, tmp_path / "out.jsonl")
    assert pair.prompt == (user("Sky?"),)
    assert (pair.chosen[0].content, pair.rejected[0].content) == SKY[1:]


def test_several_rejected_answers_are_a_pair_each(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    row = {"prompt": "Sky?", "chosen": "Blue.", "rejected": ["Green.", "Red."], "system": "S"}
    file.write_text(json.dumps(row) + "\n")
    _, _, pairs = run_import(file, tmp_path / "out.jsonl")
    assert [(pair.id, pair.rejected[0].content) for pair in pairs] == [
        ("1-1", "Green."),
        ("1-2", "Red."),
    ]
    assert {pair.prompt for pair in pairs} == {(Message("system", "S"), user("Sky?"))}


def test_every_format_has_a_sample() -> None:
    seen = {"pku-safer"}  # the same rows
    for file in DATA.iterdir():
        if file.suffix != ".md":
            seen |= summary_of(file)[0].shapes.keys()
    assert seen == FORMATS.keys()


def test_earlier_turns_and_system_texts_are_part_of_the_prompt(tmp_path: Path) -> None:
    prompts = {}
    for name in ("openai", "swift", "llama-factory", "kto", "nectar", "helpsteer", "tulu"):
        _, _, pairs = run_import(DATA / f"{name}.jsonl", tmp_path / f"{name}.jsonl")
        prompts[name] = [pair.prompt for pair in pairs]
    assert prompts["openai"] == [(TERSE, user("Sky?")), (user("Sea?"),)]
    assert prompts["swift"] == [(TERSE, user("Sky?")), BLUE, (TERSE, *BLUE)]
    assert prompts["llama-factory"][0] == (TERSE, *BLUE)
    assert prompts["kto"] == [(user("Sky?"),), (user("Sea?"),), (TERSE, user("Sky?"))]
    assert prompts["nectar"][1] == prompts["helpsteer"][1] == prompts["tulu"][1] == BLUE
    assert prompts["tulu"][2] == (TERSE, user("Sea?"))


def test_shapes_of_one_file_are_told_row_by_row_unless_one_is_named(tmp_path: Path) -> None:
    summary, _ = summary_of(DATA / "mixed.jsonl")
    assert summary.shapes == Counter(trl=2, columns=1, votes=1)
    _, account, _ = run_import(DATA / "mixed.jsonl", tmp_path / "out.jsonl")
    assert account.read == 4
    summary, problems = summary_of(DATA / "mixed.jsonl", "votes")
    assert summary.shapes == Counter(votes=4)
    assert problems.counts["missing-key"] == 3


def test_the_safer_answer_is_chosen_where_that_is_asked_for(tmp_path: Path) -> None:
    _, _, pairs = run_import(DATA / "pku-saferlhf.jsonl", tmp_path / "out.jsonl", name="pku-safer")
    assert [pair.chosen[0].content for pair in pairs] == ["Blue.", "Dry."]
    summary, _ = summary_of(DATA / "pku-saferlhf.jsonl")
    assert sorted(summary.notes) == [
        "the better answer is not the safer one (pku-safer takes the safer)",
        "the chosen answer is marked unsafe",
    ]


@pytest.mark.parametrize(
    ("row", "note"),
    [
        (
            {
                "prompt": "q",
                "chosen": "a",
                "rejected": "b",
                "score_chosen": 10,
                "score_rejected": 3,
            },
            "score_chosen is 10, which early UltraFeedback wrote for 1 too",
        ),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 3},
            "the chosen answer has the lower score",
        ),
        (
            {"input": "q", "chosen": "a", "rejected": "b", "in_gsm8k_train": True},
            "the prompt is marked as one of GSM8K's training set",
        ),
        (
            {
                "instruction": "q",
                "completions": [
                    {"response": "a", "overall_score": 10, "fine-grained_score": 1.5},
                    {"response": "b", "overall_score": 7, "fine-grained_score": 4.0},
                    {"response": "c", "overall_score": 5, "fine-grained_score": 3.0},
                ],
            },
            "an answer's score is 10 and its ratings are 2 or less; it is not used",
        ),
    ],
)
def test_known_defects_of_public_sets_are_said(
    tmp_path: Path, row: dict[str, Any], note: str
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(row) + "\n")
    summary, _ = summary_of(file)
    assert summary.notes == Counter([note])
    _, _, pairs = run_import(file, tmp_path / "out.jsonl")
    assert pairs[0].chosen[0].content != "a" or "completions" not in row


def test_rows_of_one_answer_give_one_pair_each_or_every_two_that_differ(tmp_path: Path) -> None:
    _, _, pairs = run_import(DATA / "kto.jsonl", tmp_path / "one.jsonl")
    assert [pair.id for pair in pairs] == ["1", "6", "7"]
    _, account, pairs = run_import(DATA / "kto.jsonl", tmp_path / "all.jsonl", all_pairs=True)
    assert [pair.id for pair in pairs] == ["1-3", "1-4", "6", "7"]
    assert (account.kept, account.dropped) == (7, Counter({"no-pair": 1}))


@pytest.mark.parametrize("both", [("x", "x"), ("x", "y")])
def test_rows_of_one_answer_that_say_both_are_left_out_together(
    tmp_path: Path, both: tuple[str, str]
) -> None:
    file = tmp_path / "in.jsonl"
    good = [{"prompt": "p", "completion": text, "label": True} for text in both]
    bad = [{"prompt": "p", "completion": text, "label": False} for text in both[::-1]]
    rows = [*good, *bad][:: 1 if both[0] != both[1] else 2]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, account, pairs = run_import(file, tmp_path / "out.jsonl")
    assert not pairs
    assert account.dropped == Counter({"equal" if len(rows) == 2 else "contradiction": len(rows)})


def test_a_pair_of_two_rows_that_a_later_row_contradicts_takes_both_along(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    rows: list[Any] = [
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "p", "completion": "a", "label": True},
        {"prompt": "p", "completion": "b", "label": False},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, account, pairs = run_import(file, tmp_path / "out.jsonl")
    assert (account.dropped, pairs) == (Counter(contradiction=3), [])


VALUES: list[Any] = [None, "", "text", 0, 1, -1.5, True, [], {}, ["a"], [1], [None], {"a": 1}]
VALUES += [[["a", "b"]], [{}], [{"role": "user"}], [{"role": [], "content": []}], "[{}]", "[1"]
VALUES += [[{"from": "gpt", "value": "x"}], {"role": "assistant", "content": "x"}, 10**400]


def test_values_of_any_type_in_any_place_are_no_crash() -> None:
    chance = random.Random(0)
    rows: list[dict[str, Any]] = []
    for file in sorted(DATA.glob("*.json*")):
        if file.suffix == ".jsonl":
            rows += [json.loads(line) for line in file.read_text().splitlines()]
    for name in ("open-webui.json", "open-webui-chats.json"):
        rows += json.loads((DATA / name).read_text())
    codes: Counter[str] = Counter()
    for _ in range(4000):
        row = json.loads(json.dumps(chance.choice(rows)))
        for _ in range(chance.randint(1, 2)):
            put_somewhere(row, chance)
        for shape in (detect(row), FORMATS[chance.choice(list(FORMATS))]):
            if shape is not None:
                codes[read(shape, row, chance.random() < 0.5)] += 1
    assert codes.keys() <= {*LEVELS, "kept"}
    assert codes["kept"] > 400


def read(shape: Format, row: Fields, all_pairs: bool) -> str:
    """What becomes of a row."""
    try:
        shape.read(Row(row), all_pairs)
    except LeftOutError as error:
        return error.code if "\n" not in str(error) else str(error)
    return "kept"


def put_somewhere(value: Any, chance: random.Random) -> None:
    """Replace something inside a value by something else."""
    while isinstance(value, (dict, list)) and value:
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if not isinstance(value[key], (dict, list)) or not value[key] or chance.random() < 0.3:
            value[key] = copy.deepcopy(chance.choice(VALUES))
            return
        value = value[key]


def said(role: str, text: str, keys: tuple[str, str] = ("role", "content")) -> dict[str, str]:
    return dict(zip(keys, (role, text), strict=True))


SHAREGPT = ("from", "value")
ASKED, BRIEF = said("user", "Sky?"), said("system", "You are terse.")
GOOD, BAD = said("assistant", "Blue."), said("assistant", "Green.")
# Each shape as the tool or set that it is from writes it, in its smallest form.
SMALLEST: dict[str, dict[str, Any]] = {
    "LLaMA-Factory, ShareGPT": {
        "conversations": [said("human", "Sky?", SHAREGPT)],
        "chosen": said("gpt", "Blue.", SHAREGPT),
        "rejected": said("gpt", "Green.", SHAREGPT),
    },
    "LLaMA-Factory, Alpaca": {"instruction": "Sky?", "input": "", "output": ["Blue.", "Green."]},
    "Axolotl": {"messages": [ASKED], "chosen": GOOD, "rejected": BAD},
    "Arena 55k": {"prompt": '["Sky?"]', "response_a": '["Blue."]', "response_b": '["Green."]'}
    | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0, "model_a": "m", "model_b": "n"},
    "PKU-SafeRLHF": {"prompt": "Sky?", "response_0": "Green.", "response_1": "Blue."}
    | {"better_response_id": 1, "safer_response_id": 1},
    "SHP": {"history": "Sky?", "human_ref_A": "Blue.", "human_ref_B": "Green.", "labels": 1},
    "Nectar": {
        "prompt": "\n\nHuman: Sky?\n\nAssistant: ",
        "answers": [{"answer": "Blue.", "rank": 1.0}, {"answer": "Green.", "rank": 5.0}],
    },
    "HelpSteer3": {"prompt": "Sky?", "response_1": "Blue.", "response_2": "Green."}
    | {"preference_strength": -3},
    "OpenAI": {
        "input": {"messages": [ASKED]},
        "preferred_output": [GOOD],
        "non_preferred_output": [BAD],
    },
    "ShareGPT lists": {
        "chosen": [said("human", "Sky?", SHAREGPT), said("gpt", "Blue.", SHAREGPT)],
        "rejected": [said("human", "Sky?", SHAREGPT), said("gpt", "Green.", SHAREGPT)],
    },
    "capital roles": {
        "chosen": [said("Human", "Sky?"), said("Assistant", "Blue.")],
        "rejected": [said("Human", "Sky?"), said("Assistant", "Green.")],
    },
    "parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "Sky?"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Blue."}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "Green."}]}],
    },
    "columns as lists": {"prompt": ["Sky?"], "chosen": ["Blue."], "rejected": ["Green."]},
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_row_of_a_shape_is_its_pair(tmp_path: Path, name: str) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps(SMALLEST[name]) + "\n")
    _, _, (pair,) = run_import(file, tmp_path / "out.jsonl")
    assert (pair.question, pair.chosen[0].content, pair.rejected[0].content) == SKY
    assert len(pair.prompt) == 1


def test_a_system_turn_inside_both_dialogues_beside_a_prompt_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    row = {"chosen": [BRIEF, ASKED, GOOD], "rejected": [BRIEF, ASKED, BAD], "prompt": "Sky?"}
    file.write_text(json.dumps(row) + "\n")
    _, _, (pair,) = run_import(file, tmp_path / "out.jsonl")
    assert pair.prompt == (TERSE, user("Sky?"))
    assert (pair.chosen[0].content, pair.rejected[0].content) == SKY[1:]
