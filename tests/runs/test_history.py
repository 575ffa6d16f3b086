"""Whether a model was preference-tuned before: told by names, cards and records."""

import json
from pathlib import Path

import pytest

from mlx_dpo.runs.history import tuned_before


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "is known to have had DPO on UltraFeedback"),
        ("mlx-community/SmolLM2-360M-Instruct-4bit", "is known to have had DPO on UltraFeedback"),
        ("HuggingFaceH4/zephyr-7b-beta", "is known"),
        ("allenai/Llama-3.1-Tulu-3-8B", "is known"),
        ("google/gemma-3-270m-it", "RLHF"),
        ("someone/my-model-orpo", "its name says 'orpo'"),
        ("HuggingFaceTB/SmolLM2-135M", ""),
        ("allenai/Llama-3.1-Tulu-3-8B-SFT", ""),
        ("HuggingFaceH4/zephyr-7b-sft-full", ""),
        ("google/gemma-3-270m", ""),
        ("someone/korpora", ""),
        ("someone/phi-42-base", ""),
    ],
)
def test_models_that_many_start_from_are_known_by_name(
    name: str, found: str, tmp_path: Path
) -> None:
    assert found in tuned_before(name, tmp_path)
    assert bool(found) == bool(tuned_before(name, tmp_path))


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\ntags:\n- trl\n- dpo\n---\n# M\n", "its model card is marked 'dpo'"),
        ("---\nbase_model:\n- o/SmolLM2-1.7B-Instruct\n---\n", "SmolLM2-1.7B-Instruct is known"),
        ("# M\nTuned with Direct Preference Optimization.\n", "its model card mentions 'Direct"),
        ("# M\nIt has not been aligned by RLHF.\n", ""),
        ("# M\nStart from it before DPO. It is fluent.\n", ""),
        ("---\nlicense: mit\n---\n# M\nAn SFT model.\n", ""),
        ("\x1b[31m---\n\udcff", ""),
    ],
)
def test_a_model_card_may_say_it(card: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(card.encode("utf-8", "surrogateescape"))
    assert found in tuned_before("m", tmp_path)
    assert bool(found) == bool(tuned_before("m", tmp_path))


def test_the_card_of_a_model_before_such_training_may_name_those_that_were_made_from_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "README.md").write_text("# M\nZephyr was trained from it with DPO.\n")
    assert tuned_before("mistral-7b-sft-beta", tmp_path) == ""
    assert tuned_before("m", tmp_path) == "its model card mentions 'DPO'"


def test_our_own_record_says_it_and_so_does_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "a/zephyr-7b-alpha"}))
    assert tuned_before("m", tmp_path).startswith("zephyr-7b-alpha is known")
    (tmp_path / "dpo.json").write_text(json.dumps({"trained_from": {"model": "m"}}))
    assert tuned_before("m", tmp_path) == "a run of mlx_dpo made it"
    assert tuned_before("m", tmp_path / "none", str(tmp_path)) == "a run of mlx_dpo made it"
