"""The library: its names, rows to ids, a model to a folder, and the examples of its page."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlx_dpo
from mlx_dpo.convert.sources import load_tokenizer
from mlx_dpo.preferences.chat import chat_format
from mlx_dpo.preferences.encoding import encode_preferences
from tests.test_commands import clone
from tests.test_docs import ROOT

__all__ = ["clone"]

TINY = ROOT / "checkpoints" / "tiny-sft"
PAIRS = ROOT / "data" / "dpo" / "preferences.json"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/library.md").read_text(), re.M | re.S)
ROW = {"prompt": "I am late.", "chosen": "Come in.", "rejected": "Hurry up."}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(TINY)


def trainer_of(model: Any, tokenizer: Any, **changes: Any) -> mlx_dpo.DPOTrainer:
    chosen: dict[str, Any] = {
        "examples": mlx_dpo.encode([ROW], tokenizer),
        "max_seq_len": 64,
        "pad_id": 0,
        "beta": 0.1,
        "batch_size": 1,
        "max_steps": 2,
        "max_lr": 1e-2,
    }
    return mlx_dpo.DPOTrainer(model, **{**chosen, **changes})


def test_the_names_are_those_that_dir_shows_and_type_checkers_read() -> None:
    tree = ast.parse(Path(str(mlx_dpo.__file__)).read_text())
    for_checkers = next(node for node in tree.body if isinstance(node, ast.If) and node.test
                        and ast.unparse(node.test) == "TYPE_CHECKING")  # fmt: skip
    imported = {
        alias.name: node.module
        for node in for_checkers.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == mlx_dpo._HOME
    assert dir(mlx_dpo) == sorted(mlx_dpo.__all__) == sorted({*imported, "__version__"})
    assert all(getattr(mlx_dpo, name) is not None for name in dir(mlx_dpo))


@pytest.mark.filterwarnings("ignore::UserWarning:mlx_dpo")
def test_the_page_s_examples_run_and_mlx_lm_answers_from_the_folder(clone: Path) -> None:
    from mlx_lm import generate, load

    lines = [json.dumps({**ROW, "prompt": f"I am late by {n} hours."}) for n in range(6)]
    Path("mine.jsonl").write_text("\n".join(lines))
    assert len(BLOCKS[0].strip().splitlines()) <= 20
    names: dict[str, Any] = {}
    first = None
    for block in BLOCKS:
        exec(compile(block, "docs/library.md", "exec"), names)
        first = first or names["history"]
    assert first is not None
    assert first["train_loss"][0] == pytest.approx(0.693147, abs=1e-5)
    assert names["trainer"].step == 10
    for model, adapter in ("checkpoints/mine", None), (names["base"], "checkpoints/mine-lora"):
        answering, tokenizer = load(model, adapter_path=adapter)[:2]
        turns = [{"role": "user", "content": "I am late."}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
        assert generate(answering, tokenizer, prompt=prompt, max_tokens=8)


def test_rows_become_the_ids_that_training_makes_of_a_file(tokenizer: Any) -> None:
    rows = mlx_dpo.read_preferences(PAIRS)[:20]
    chat = chat_format(tokenizer)
    expected = encode_preferences(rows, chat, max_length=512).examples
    as_texts = [
        {name: [turn._asdict() for turn in getattr(row, name)] for name in ROW} for row in rows
    ]
    assert mlx_dpo.encode(rows, tokenizer) == mlx_dpo.encode(as_texts, tokenizer) == expected
    for _, *answers in expected:
        for ids in answers:
            assert ids.index(chat.closing_id) == len(ids) - 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, {"prompt": "Hi.", "chosen": "Yes."}], r"row 2: missing-key: key 'rejected'"),
        ([ROW, "text"], "row 2: not-object: expected an object, found text"),
        (
            [ROW, {**ROW, "chosen": ROW["rejected"], "rejected": ROW["chosen"]}],
            r"row 1: contradiction: row 2 prefers the other way round.*the first of 2 errors",
        ),
        ([{**ROW, "chosen": "Hi.<|end|>"}], "row 1: special-token: '<|end|>'"),
        ([{**ROW, "chosen": ROW["rejected"]}], "no pair is left to train on: row 1: equal"),
        ([], "no pair is left to train on: there are no rows"),
    ],
)
def test_a_row_that_is_wrong_is_named(tokenizer: Any, rows: Any, message: str) -> None:
    with pytest.raises(mlx_dpo.MlxDpoError, match=message):
        mlx_dpo.encode(rows, tokenizer)


def test_rows_that_are_left_out_or_cut_are_counted(tokenizer: Any) -> None:
    rows = [ROW, {**ROW, "chosen": "No."}, {**ROW, "chosen": "No " * 40}, {"prompt": "Hi."}]
    rows[1]["rejected"] = "No."
    with pytest.warns(UserWarning, match="2 of 4 rows are kept: 1 missing-key, 1 equal, 1 resp"):
        pairs = mlx_dpo.encode(rows, tokenizer, max_length=30, drop_bad=True)
    assert [len(pair.chosen_ids) + len(pair.prompt_ids) for pair in pairs][1] == 30
    with pytest.raises(mlx_dpo.MlxDpoError, match=r"too-long: .*raise max_length or shorten"):
        mlx_dpo.encode([ROW], tokenizer, max_length=2)


def test_adapters_are_trained_against_their_own_base_and_saved_alone(
    tokenizer: Any, tmp_path: Path
) -> None:
    model, _ = mlx_dpo.load(TINY)
    mlx_dpo.attach_adapters(model, rank=2)
    trainer = trainer_of(model, tokenizer)
    history = trainer.train()
    assert history["train_loss"][0] == pytest.approx(0.693147, abs=1e-6)
    assert trainer.evaluate(trainer.examples)["loss"] < history["train_loss"][0]
    mlx_dpo.save(model, TINY, tmp_path / "out")
    again, _ = mlx_dpo.load(tmp_path / "out")
    ids = mx.array([[3, 4, 5]])
    assert mx.array_equal(again(ids), model(ids))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_what_is_there_is_not_replaced_by_a_save(tokenizer: Any, tmp_path: Path) -> None:
    model, _ = mlx_dpo.load(TINY)
    mlx_dpo.save(model, TINY, tmp_path / "out")
    mlx_dpo.save(model, TINY, tmp_path / "out", overwrite=True)
    (tmp_path / "mine").mkdir()
    for out, overwrite, message in (
        (tmp_path / "out", False, "pass overwrite=True"),
        (tmp_path / "mine", True, "no `save` made it"),
        (TINY / "out", False, "overlaps"),
    ):
        with pytest.raises(mlx_dpo.MlxDpoError, match=message):
            mlx_dpo.save(model, TINY, out, overwrite=overwrite)


def test_a_quantised_model_without_adapters_is_not_saved(
    packed_folder: Path, tmp_path: Path
) -> None:
    model, _ = mlx_dpo.load(packed_folder)
    with pytest.raises(mlx_dpo.MlxDpoError, match="has no adapters: nothing trained"):
        mlx_dpo.save(model, packed_folder, tmp_path / "out")
