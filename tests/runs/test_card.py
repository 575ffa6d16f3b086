"""The model card of a finished folder: what it says, and what it must not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from mlx_dpo.runs.card import licence_of, model_card
from tests.runs.conftest import ORACLE


def metadata(card: ModelCard) -> ModelCardData:
    assert isinstance(card.data, ModelCardData)
    return card.data


RECORD: dict[str, Any] = {
    "trained_from": {"model": "/home/ada/models/llama", "name": "llama"},
    "data": {"file": "/home/ada/pairs.jsonl", "name": "pairs.jsonl"},
    "settings": {"beta": 0.1, "learning_rate": 1e-05, "run_dir": "/home/ada/runs/1"},
}


def test_an_adapter_s_card_says_what_it_is_and_how_well_it_did(adapter_folder: Path) -> None:
    card = ModelCard.load(adapter_folder / "README.md")
    assert metadata(card).library_name == "mlx"
    assert {"dpo", "lora", "mlx"} <= set(metadata(card).tags or [])
    assert metadata(card).base_model is None, "the hub has no model of this name"
    record = json.loads((adapter_folder / "dpo.json").read_text())
    for row in (
        "| data | pairs.json |",
        "| beta | 0.1 |",
        "| learning rate | 0.01 |",
        "| adapter ranks | 4 |",
        f"| pairs held out | {len(record['data']['split']['held_out'])} |",
    ):
        assert row in card.text
    rows = [line for line in card.text.splitlines() if line.startswith(("| all", "| tone"))]
    assert len(rows) == 2
    overall = record["groups"][0]
    assert f"{overall['reward_accuracy']:.2f} (" in rows[0]
    assert f"| {overall['loss']:.4f} |" in rows[0]
    assert overall["loss"] == pytest.approx(record["held_out"]["loss"])


def test_no_path_of_the_machine_is_in_a_card(adapter_folder: Path) -> None:
    text = (adapter_folder / "README.md").read_text()
    assert str(ORACLE) in (adapter_folder / "dpo.json").read_text()
    assert str(ORACLE.parent) not in text
    assert str(adapter_folder.parent) not in text
    assert "ada" not in model_card(RECORD, "out", {})


def test_a_base_on_the_hub_is_linked_and_a_word_of_the_base_s_licence_goes_along(
    tmp_path: Path,
) -> None:
    base = Path(shutil.copytree(ORACLE, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# Of the base\n")
    record = {**RECORD, "trained_from": {"name": "owner/llama"}, "data": {"name": "owner/pairs"}}
    card = ModelCard(model_card(record, "out", licence_of(base)))
    assert (metadata(card).base_model, metadata(card).datasets) == ("owner/llama", ["owner/pairs"])
    assert metadata(card).license == "apache-2.0"
    assert "Of the base" not in card.content
    assert "mlx_lm.generate --model out" in card.text


@pytest.mark.parametrize(
    "content", ["", "no metadata", "---\n: [\n---\n", "---\nlicense: [1]\n---"]
)
def test_a_base_s_card_that_says_no_licence_does_no_harm(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content)
    assert licence_of(tmp_path) == {}


def test_a_name_is_no_markup(tmp_path: Path) -> None:
    hostile = "a|b`<script>[x](http://y)\n# c\n---\nlicense: mit"
    groups = [{"name": hostile, **dict.fromkeys(_FIGURES, 1.0), "num_pairs": 2}]
    record = {"trained_from": {"name": hostile}, "data": {"name": hostile, "file": "x"}}
    card = ModelCard(model_card({**record, "groups": groups}, hostile, {}))
    assert metadata(card).license is None
    assert not set("<[`") & set(card.text.replace("`a_b", "").replace("mit`", ""))
    assert all(line.count("|") in (0, 3, 7) for line in card.text.splitlines())


_FIGURES = (
    *("reward_accuracy", "logprob_accuracy_before", "logprob_accuracy_after"),
    *("margin", "chosen_reward", "rejected_reward", "loss"),
)


def test_a_record_that_was_changed_by_hand_makes_a_shorter_card() -> None:
    odd = {"trained_from": 1, "data": [], "settings": "x", "groups": [{"name": 3}], "kept": None}
    assert "On held-out pairs" not in model_card(odd, "out", {})
