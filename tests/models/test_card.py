"""The model card of a finished folder: what it says, and what it must not."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from mlx_dpo.models.card import carried_card, model_card, origin_of, published
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
    card = ModelCard(model_card(record, "out", origin_of(base)))
    assert (metadata(card).base_model, metadata(card).datasets) == ("owner/llama", ["owner/pairs"])
    assert metadata(card).license == "apache-2.0"
    assert "Of the base" not in card.content
    assert "mlx_lm.generate --model out" in card.text


@pytest.mark.parametrize(
    "content", ["", "no metadata", "---\n: [\n---\n", "---\nlicense: [1]\n---"]
)
def test_a_base_s_card_that_says_no_licence_does_no_harm(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content)
    assert origin_of(tmp_path) == {}
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").symlink_to(ORACLE / "config.json")
    assert origin_of(tmp_path) == {}


BASE = "---\nlicense: apache-2.0\nbase_model: owner/older\n---\n# Of the base\n"


def test_a_base_keeps_its_card_through_a_conversion_and_is_named_where_the_hub_s_cache_has_it(
    tmp_path: Path,
) -> None:
    here = tmp_path / "models--owner--base" / "snapshots" / "1f2e"
    here.mkdir(parents=True)
    assert carried_card(here, {}, "out", library="mlx") == "---\nbase_model: owner/base\n---\n"
    (here / "README.md").write_text(BASE)
    card = ModelCard(carried_card(here, {}, "out", library="mlx") or "")
    assert metadata(card).base_model == "owner/base"
    assert (metadata(card).license, card.text.strip()) == ("apache-2.0", "# Of the base")
    (tmp_path / "README.md").write_text(BASE)
    assert carried_card(tmp_path, {}, "out", library="mlx") == BASE
    assert carried_card(tmp_path / "none", {}, "out", library="mlx") is None
    assert [published(here), published(tmp_path)] == ["owner/base", tmp_path.name]


def test_pairs_in_the_hub_s_cache_are_named_by_their_data_set_and_never_by_a_blob(
    tmp_path: Path,
) -> None:
    for kind in ("datasets", "models"):
        repository = tmp_path / f"{kind}--owner--prefs"
        snapshot = repository / "snapshots" / "1f2e" / "data"
        for folder in (snapshot, repository / "blobs"):
            folder.mkdir(parents=True)
        (repository / "blobs" / "0d5c").write_text("[]")
        (snapshot / "train.jsonl").symlink_to(repository / "blobs" / "0d5c")
    here, blobs = tmp_path / "datasets--owner--prefs", "blobs/0d5c"
    file = "snapshots/1f2e/data/train.jsonl"
    assert [published(here / name) for name in (file, blobs)] == ["owner/prefs"] * 2
    assert published(tmp_path / "models--owner--prefs" / file) == "train.jsonl"


def test_a_model_of_a_converted_base_is_of_what_that_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(BASE)
    card = ModelCard(model_card(RECORD, "out", origin_of(tmp_path)))
    assert (metadata(card).base_model, metadata(card).license) == ("owner/older", "apache-2.0")
    assert "The model `llama`" in card.text
    (tmp_path / "README.md").write_text("---\nbase_model: [/home/ada/base]\n---\n")
    assert origin_of(tmp_path) == {}


def test_a_card_in_another_form_says_how_to_use_that_unless_a_person_edited_it(
    adapter_folder: Path, tmp_path: Path
) -> None:
    record = json.loads((adapter_folder / "dpo.json").read_text())
    text = carried_card(adapter_folder, record, "for-peft", library="peft") or ""
    assert 'PeftModel.from_pretrained(model, "for-peft")' in text
    assert metadata(ModelCard(text)).library_name == "peft"
    (tmp_path / "README.md").write_text("# My own words")
    assert carried_card(tmp_path, record, "for-peft", library="peft") == "# My own words"


@pytest.mark.parametrize(
    ("library", "use"),
    [
        ("transformers", 'AutoModelForCausalLM.from_pretrained("ada/out")'),
        ("gguf", "ollama create out -f Modelfile"),
    ],
)
def test_a_card_says_how_to_use_what_was_exported(library: str, use: str) -> None:
    export = {"quantization": {"gguf": "Q8_0"}}
    card = ModelCard(model_card({**RECORD, "export": export}, "ada/out", {}, library=library))
    assert use in card.text
    assert "by mlx-dpo and packed as Q8_0." in card.text
    assert metadata(card).library_name == (library if library == "transformers" else None)


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
    for library in ("mlx", "peft", "transformers", "gguf"):
        assert (
            "mlx_lm" in model_card({"adapter": 1}, "out", {}, library=library) or library == "peft"
        )
    odd = {"trained_from": 1, "data": [], "settings": "x", "groups": [{"name": 3}], "kept": None}
    assert "On held-out pairs" not in model_card(odd, "out", {})
